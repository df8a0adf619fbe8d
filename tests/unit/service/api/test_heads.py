import pytest

from service.api.heads import MAX_HEAD_BYTES, MAX_HEADERS, check_head, check_head_size
from service.domain.errors import HeadTooLarge, IgnError, MalformedRequest, NotSupported, UnsupportedMedia

HOST = (b"host", b"x")
CHUNKED = (b"transfer-encoding", b" Chunked")
CODING = (b"content-encoding", b"gzip")


@pytest.mark.parametrize(
    ("version", "headers", "error"),
    [
        ("1.1", [HOST], None),
        ("1.0", [], None),
        ("1.1", [HOST, CHUNKED, CODING], None),
        ("0.9", [HOST], MalformedRequest),
        ("2.0", [HOST], MalformedRequest),
        ("1.1", [], MalformedRequest),
        ("1.1", [HOST, HOST], MalformedRequest),
        ("1.0", [HOST, HOST], MalformedRequest),
        ("1.0", [HOST, CHUNKED], MalformedRequest),
        ("1.1", [HOST, CHUNKED, CHUNKED], NotSupported),
        ("1.1", [HOST, (b"transfer-encoding", b"gzip, chunked")], NotSupported),
        ("1.1", [HOST, CODING, CODING], UnsupportedMedia),
    ],
)
def test_a_head_is_unambiguous(version: str, headers: list[tuple[bytes, bytes]], error: type[IgnError] | None) -> None:
    assert type(check_head(version, headers)) is (error or type(None))


@pytest.mark.parametrize(("size", "count"), [(MAX_HEAD_BYTES + 1, 0), (0, MAX_HEADERS + 1)])
def test_a_head_is_limited(size: int, count: int) -> None:
    check_head_size(MAX_HEAD_BYTES, MAX_HEADERS)
    with pytest.raises(HeadTooLarge):
        check_head_size(size, count)
