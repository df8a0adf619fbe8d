import gzip
import os
import tracemalloc
import zlib

import pytest

from service.api.oip.compression import Coding, accepted_encoding, content_encoding, deflate, inflate
from service.domain.errors import MalformedRequest, TooLarge, UnsupportedMedia

CODINGS: list[Coding] = ["gzip", "deflate"]


def compressed(content: bytes, coding: Coding) -> bytes:
    return gzip.compress(content) if coding == "gzip" else zlib.compress(content)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("content", [b"", b"x", os.urandom(100_000), b"\0" * 1_000_000])
def test_there_and_back(coding: Coding, content: bytes) -> None:
    assert inflate(compressed(content, coding), coding, len(content)) == content
    assert inflate(deflate(content, coding), coding, len(content)) == content


@pytest.mark.parametrize("coding", CODINGS)
def test_one_byte_too_many(coding: Coding) -> None:
    with pytest.raises(TooLarge, match="999"):
        inflate(compressed(b"\0" * 1000, coding), coding, 999)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_bomb_takes_no_more_memory_than_is_allowed(coding: Coding) -> None:
    bomb = compressed(b"\0" * 100_000_000, coding)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            inflate(bomb, coding, 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", CODINGS)
def test_damage_is_found(coding: Coding) -> None:
    whole = compressed(b"content", coding)
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])  # of the check sum
    for broken in (b"", whole[:-1], whole + b"\0", whole + whole, b"\0" + whole, flipped, zlib.compress(b"x")[2:-4]):
        with pytest.raises(MalformedRequest, match=coding):
            inflate(broken, coding, 1000)


@pytest.mark.parametrize(
    ("header", "coding"),
    [(None, None), ("", None), ("identity", None), ("GZIP", "gzip"), (" x-gzip ", "gzip"), ("deflate", "deflate")],
)
def test_content_encoding(header: str | None, coding: Coding | None) -> None:
    assert content_encoding(header) == coding


@pytest.mark.parametrize("header", ["br", "gzip, deflate", "gzip;q=1", "zstd"])
def test_other_content_encodings(header: str) -> None:
    with pytest.raises(UnsupportedMedia):
        content_encoding(header)


@pytest.mark.parametrize(
    ("header", "coding"),
    [(None, None), ("gzip", "gzip"), (" Deflate", "deflate"), ("gzip, deflate", None), ("gzip;q=1", None), ("*", None)],
)
def test_accept_encoding_counts_where_it_names_one(header: str | None, coding: Coding | None) -> None:
    assert accepted_encoding(header) == coding
