import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.body import MAX_DEPTH, parse_content_type, parse_json
from service.api.multipart import parse_multipart
from service.domain.errors import InvalidContent, MalformedRequest


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, ("", {})),
        ("", ("", {})),
        ("image/png", ("image/png", {})),
        ("Image/PNG; Q=1", ("image/png", {"q": "1"})),
        ('multipart/form-data; boundary="a;b"', ("multipart/form-data", {"boundary": "a;b"})),
        ("application/json ; charset=utf-8", ("application/json", {"charset": "utf-8"})),
    ],
)
def test_media_type(header: str | None, expected: tuple[str, dict[str, str]]) -> None:
    assert parse_content_type(header) == expected


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values))
def test_json_keeps_every_valid_object(value: dict[str, Any]) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary() | st.text(alphabet='{}[]":,0123456789.eE-+ntrufalsINy\\d8').map(str.encode))
def test_json_refuses_in_our_own_words_only(body: bytes) -> None:
    try:
        parsed = parse_json(body)
    except (MalformedRequest, InvalidContent) as exc:
        exc.detail.encode()
    else:
        assert parsed == json.loads(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b'{"a": ' + b"9" * 5000 + b",}",
        b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
        b'{"a": ' * 100_000,
        b'{"a": [1, ' + b"9" * 5000 + b"]}",
        rb'{"a": ["\ud800"]}',
        rb'{"\udfff": 1}',
    ],
)
def test_json_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest, match="body"):
        parse_json(body)


def test_json_accepts_the_deepest_nesting_and_long_integers() -> None:
    inner = MAX_DEPTH - 1
    assert "a" in parse_json(b'{"a": ' + b"[" * inner + b"]" * inner + b"}")
    assert parse_json(b'{"a": ' + b"9" * 400 + b"}") == {"a": 10**400 - 1}
    assert parse_json(rb'{"a": "\ud83d\ude00"}') == {"a": "😀"}


def part(disposition: str, content: bytes, *more: str) -> bytes:
    lines = [f"Content-Disposition: {disposition}", *more]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + content


def form(
    *parts: bytes, boundary: str = "frontier", end: bytes = b"--\r\n", max_files: int = 2, max_fields: int = 3
) -> tuple[dict[str, list[str]], dict[str, list[bytes]]]:
    mark = b"--" + boundary.encode()
    body = b"".join(mark + b"\r\n" + content + b"\r\n" for content in parts) + mark + end
    header = f'multipart/form-data; boundary="{boundary}"'
    return parse_multipart(header, body, max_files=max_files, max_fields=max_fields)


def test_multipart_fields_and_files_in_order() -> None:
    picture = bytes(range(256)) * 600 + b"\r\n--front"  # several pieces, and nearly a boundary
    fields, files = form(
        part('form-data; name="steps"', b"2"),
        part('form-data; name="image"; filename="a.png"', picture, "Content-Type: image/png"),
        part("form-data; name=steps", "dôuble".encode()),
        part('form-data; name="image"; filename="C:\\b;.png"', b""),
    )
    assert fields == {"steps": ["2", "dôuble"]}
    assert files == {"image": [picture, b""]}


def test_a_multipart_file_needs_no_name_when_its_type_says_that_it_is_a_picture() -> None:
    fields, files = form(
        part("form-data; name=image", b"\xff\xd8", "Content-Type: Image/JPEG"),
        part("form-data; name=image", b"\x89PNG", "content-type: image/png; x=y"),
        part("form-data; name=steps", b"2", "Content-Type: text/plain"),
        part("form-data; name=mask", b"AAAA"),
    )
    assert fields == {"steps": ["2"], "mask": ["AAAA"]}
    assert files == {"image": [b"\xff\xd8", b"\x89PNG"]}


@pytest.mark.parametrize("options", [{"end": b"-"}, {"end": b"\r\nContent-Disp"}, {"boundary": "b" * 5000}])
def test_multipart_cut_short_or_with_a_long_boundary(options: dict[str, Any]) -> None:
    with pytest.raises(MalformedRequest):
        form(part('form-data; name="a"', b"x"), **options)


@given(st.binary(max_size=300))
def test_multipart_refuses_in_our_own_words_only(body: bytes) -> None:
    with contextlib.suppress(MalformedRequest, InvalidContent):
        parse_multipart("multipart/form-data; boundary=-", b"---\r\n" + body, max_files=1, max_fields=1)
