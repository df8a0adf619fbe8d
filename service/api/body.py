"""Read a request body within limits of size and time, and parse it as JSON.

A body with a syntax error raises `MalformedRequest` (400). A well-formed body with an invalid value raises
`InvalidContent` (422), which names the field. If the client disconnects, Starlette's `ClientDisconnect` is raised;
`service.api.application` logs it with status 499. The parsers are synchronous: call them in a thread for
large bodies.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from math import isfinite
from typing import Any, Final, Protocol, overload

from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.domain.errors import BodyTooSlow, InvalidContent, MalformedRequest, TooLarge, UnsupportedMedia

MAX_DEPTH: Final = 32
"""Deepest nesting of objects and arrays that a JSON body may have."""
MAX_VALUES: Final = 200_000
"""Most values in a JSON body, objects and arrays included. Parsing and rejecting one takes about 1 µs and 200 bytes, so
16 MiB of empty objects would take many seconds and a gigabyte. The largest request has one picture for each of at most
65 536 images. Bodies of the Open Inference Protocol hold more numbers; `service.api.oip.tensors` adds them."""

_NO_LIMIT: Final = nullcontext()
MIN_HELD: Final = 1 << 12  # bytes; fewer are not worth counting: 1024 requests hold 4 MiB of them
_MAX_NAME: Final = 200  # characters of a field name from the request that an error repeats
# The usual values of Content-Type. They have no parameters, so they need no parser.
_PARAMETERLESS: Final = frozenset(("application/json", "image/png", "image/jpeg", "image/webp"))


class HeaderFields(Protocol):
    """What endpoints read headers with: Starlette's `Headers`, or those of `service.api.application`."""

    @overload
    def get(self, key: str, /) -> str | None: ...
    @overload
    def get(self, key: str, default: str, /) -> str: ...
    def getlist(self, key: str, /) -> list[str]:
        """Every value of a header."""
        ...


async def read_body(
    headers: HeaderFields,
    receive: Receive,
    *,
    max_bytes: int,
    deadline: float,
    hold: Callable[[int], None] | None = None,
    is_received: bool = False,
) -> bytes:
    """Read the whole body.

    Args:
        headers: of the request.
        receive: the request's ASGI channel, unread so far.
        max_bytes: largest body accepted, counted in received bytes; a larger Content-Length is rejected before reading.
        deadline: `time.monotonic()` seconds by which the last byte must have arrived.
        hold: called with the number of bytes whenever more than 4 KiB have arrived; it raises if they are too many
            for the service.
        is_received: the server has the whole body, so no time limit is needed.

    Raises:
        UnsupportedMedia: the body has a Content-Encoding.
        TooLarge: more than ``max_bytes``.
        BodyTooSlow: the deadline passed.
        TooManyBytes: from ``hold``.
        ClientDisconnect: the client disconnected first.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMedia("Content-Encoding: bodies must be sent without one")
    length = headers.get("content-length", "")
    # `int` takes quadratic time in the number of digits, so a very long number is not converted.
    if length.isdecimal() and (len(length) > 18 or int(length) > max_bytes):
        raise _too_large(max_bytes)
    body, counted, more = bytearray(), 0, True
    try:
        async with _NO_LIMIT if is_received else asyncio.timeout(deadline - time.monotonic()):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece = message.get("body", b"")
                if len(body) + len(piece) > max_bytes:
                    raise _too_large(max_bytes)
                body += piece
                if hold is not None and len(body) - counted > MIN_HELD:
                    hold(len(body) - counted)
                    counted = len(body)
                more = message.get("more_body", False)
            return bytes(body)
    except TimeoutError as exc:
        raise BodyTooSlow("the body did not arrive in time") from exc


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body is larger than {max_bytes} bytes")


def parse_content_type(header: str | None) -> tuple[str, dict[str, str]]:
    """Parse a Content-Type header into media type, in lower case, and parameters; ``("", {})`` without a header."""
    if header in _PARAMETERLESS:
        return header, {}
    name, parameters = parse_options_header(header)
    return name.decode("latin-1").strip(), {
        key.decode("latin-1"): value.decode("latin-1") for key, value in parameters.items()
    }


def parse_json(body: bytes, *, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """Parse a JSON object; if a key occurs twice, its last value counts.

    Args:
        body: the whole body.
        max_values: most values, objects and arrays included.

    Raises:
        MalformedRequest: not UTF-8, not JSON, NaN or Infinity, or nested deeper than `MAX_DEPTH`.
        InvalidContent: not an object, too many values, or a number beyond float64 (1e400).
    """
    # A container begins with a bracket, and a comma precedes every other value but the first of its container. Those
    # inside strings count, too: base64 has none, and a data URL has one comma.
    if len(body) > max_values and sum(map(body.count, (b"{", b"[", b","))) > max_values:
        raise InvalidContent.field("body", f"holds more than {max_values} values")
    try:
        value = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as exc:
        raise MalformedRequest(f"the body is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InvalidContent.field("body", "must be a JSON object")
    _check_values(value)
    return value


_FieldPath = tuple["_FieldPath", str | int] | None  # linked list of keys from a node up to the body


def _check_values(body: dict[str, Any]) -> None:
    """Raise if containers nest too deep or a number is infinite."""
    # A stack instead of recursion, because nesting is the caller's choice. A field's path becomes text only for an
    # error, because bodies of the Open Inference Protocol hold 50 000 numbers.
    stack: list[tuple[dict[str, Any] | list[Any], _FieldPath, int]] = [(body, None, 1)]
    while stack:
        node, path, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise MalformedRequest(f"the body nests deeper than {MAX_DEPTH} levels")
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            value_type = type(value)
            if value_type is dict or value_type is list:
                stack.append((value, (path, key), depth + 1))
            elif value_type is float and not isfinite(value):
                raise InvalidContent.field(_format_path((path, key)), "beyond the range of numbers")


def _format_path(path: _FieldPath) -> str:
    parts: list[str] = []
    while path is not None:
        path, key = path
        parts.append(str(key))
    return printable_name(".".join(reversed(parts)))


def printable_name(name: str) -> str:
    """A field name from the request as an error may repeat it: at most 200 characters, no lone surrogates."""
    return name[:_MAX_NAME].encode("utf-8", "replace").decode("utf-8")
