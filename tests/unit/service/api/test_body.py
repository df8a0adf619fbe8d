import contextlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.api.message import parse_json, parse_multipart
from service.domain.errors import InvalidContent, MalformedRequest

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
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


def part(disposition: str, content: bytes, *more: str) -> bytes:
    lines = [f"Content-Disposition: {disposition}", *more]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + content


def form(*parts: bytes) -> tuple[list[tuple[str, bytes]], dict[str, list[bytes]]]:
    body = (
        b"".join(b"--frontier\r\n" + content + b"\r\n" for content in parts) + b"--frontier--\r\n"
    )
    header = 'multipart/form-data; boundary="frontier"'
    return parse_multipart(header, body, max_files=4, max_fields=4)


SPECIAL = [b"\r\n--front", b"x--frontier", b"\r\n\r\n", b"\r\n"]
CONTENTS = (st.binary(max_size=50) | st.sampled_from(SPECIAL)).filter(
    lambda each: b"\n--frontier" not in b"\n" + each
)


# A file needs no name if its type says that it is an image.
HEADS = [
    ('form-data; name="image"; filename="C:\\b;.png"',),
    ("form-data; name=image", "Content-Type: Image/JPEG"),
    ("form-data; name=image", "content-type: image/png; x=y"),
]


@given(
    st.lists(CONTENTS, max_size=4),
    st.lists(st.text(max_size=20), max_size=4),
    st.sampled_from(HEADS),
)
def test_a_form_comes_out_as_it_went_in(
    contents: list[bytes], texts: list[str], head: tuple[str, ...]
) -> None:
    files = [part(head[0], content, *head[1:]) for content in contents]
    fields, found = form(*files, *(part("form-data; name=steps", text.encode()) for text in texts))
    # Browsers send an empty field, or file without a name, for an input that was left empty.
    assert found.get("image", []) == [each for each in contents if each or "filename" in head[0]]
    assert fields == [("steps", text.encode()) for text in texts if text]


@given(st.binary(max_size=300))
def test_multipart_refuses_in_our_own_words_only(body: bytes) -> None:
    with contextlib.suppress(MalformedRequest, InvalidContent):
        parse_multipart(
            "multipart/form-data; boundary=-", b"---\r\n" + body, max_files=1, max_fields=1
        )
