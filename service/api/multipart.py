"""Parse `multipart/form-data` bodies, and options that arrive as text in their fields or in a
query.

Starlette's `request.form()` cannot keep the contract: it treats an image without a file name as
text, decodes text that is not UTF-8 as latin-1, accepts a body without its last boundary, and
answers too many files or fields with 400 and without a field name instead of 422.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from python_multipart.multipart import parse_options_header
from starlette.datastructures import QueryParams

from service.api.message import printable_name
from service.api.negotiation import Json
from service.domain.errors import InvalidContent, MalformedRequest

_MAX_BOUNDARY: Final = 256
_MAX_HEAD: Final = 1 << 12  # bytes of the header fields of a part
_MAX_ITEMS: Final = 64  # of a list; more are an error


def parse_multipart(
    content_type: str,
    body: bytes,
    *,
    max_files: int,
    max_fields: int,
) -> tuple[list[tuple[str, bytes]], dict[str, list[bytes]]]:
    """Split a `multipart/form-data` body into fields, as pairs of name and value, and files, as a
    mapping from name to values in order.

    A part with a file name, or with the content type of an image, is a file. Every other part is a
    field. An empty field, and a file part without name and content, are skipped: browsers send them
    for inputs that were left empty.

    Raises `MalformedRequest` without a first or last boundary, or for a part without a name, and
    `InvalidContent` for too many files or fields.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= _MAX_BOUNDARY:
        raise MalformedRequest("Content-Type: the boundary is missing or too long")
    fields: list[tuple[str, bytes]] = []
    files: dict[str, list[bytes]] = {}
    left = {"files": max_files, "fields": max_fields}
    # A line break belongs to the boundary that follows it. One before the first may be missing.
    delimiter = b"\r\n--" + boundary
    preamble, *parts = body.split(delimiter, max_files + max_fields + 1)
    if preamble.startswith(delimiter[2:]):
        parts.insert(0, preamble[len(delimiter) - 2 :])
    # Each part is let go once it is read, so that a body is held twice at most.
    while parts:
        part = parts.pop(0)
        if part.startswith(b"--"):
            return fields, files
        name, filename, content = _parse_part(part)
        kind = "fields" if filename is None else "files"
        left[kind] -= 1
        if left[kind] < 0:
            raise InvalidContent.field(printable_name(name), f"too many {kind} in the form")
        if filename is None and content:
            fields.append((name, content))
        elif filename or content:
            files.setdefault(name, []).append(content)
    raise MalformedRequest("the body is not multipart/form-data that ends with its last boundary")


def _parse_part(part: bytes) -> tuple[str, bytes | None, bytes]:
    """Name, file name and content of a part; a field has no file name, and a file may have an empty
    one.
    """
    end = part.find(b"\r\n\r\n", 0, _MAX_HEAD)
    before, *lines = part[: max(end, 0)].split(b"\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(b":") for line in lines)}
    disposition, options = parse_options_header(headers.get(b"content-disposition", b""))
    if before.strip() or disposition.strip() != b"form-data" or not options.get(b"name"):
        raise MalformedRequest("a multipart part has no Content-Disposition: form-data with a name")
    # A file name is optional (RFC 7578, section 4.2), and programs often send an image from memory
    # without one.
    is_image = headers.get(b"content-type", b"").strip().lower().startswith(b"image/")
    filename = options.get(b"filename", b"" if is_image else None)
    return decode_utf8(options[b"name"], "a part's name"), filename, part[end + 4 :]


def decode_utf8(data: bytes, name: str) -> str:
    """A text; raises `MalformedRequest` with the name of what it is."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise MalformedRequest(f"{name}: not UTF-8") from exc


def parse_options(pairs: Sequence[tuple[str, str]]) -> Json:
    """Options by name, for a schema that is not strict; raises `InvalidContent` for those given
    twice.
    """
    options: Json = dict(pairs)
    if len(options) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated = [printable_name(name) for name, count in counts.items() if count > 1]
        message = "given more than once"
        raise InvalidContent(
            f"{', '.join(repeated)}: {message}", fields=[(name, message) for name in repeated]
        )
    if "record" in options:  # the only list
        options["record"] = options["record"].split(",", _MAX_ITEMS)
    return options


def parse_query(query: bytes, path: Mapping[str, str] = MappingProxyType({})) -> Json:
    """The options in a query, and in the parameters of a ``path``, as `parse_options` has them."""
    return parse_options((*path.items(), *QueryParams(query).multi_items()))
