"""Request bodies: read within a byte cap and a deadline, then parsed strictly.

Whatever arrives broken is `MalformedRequest` (400); whatever is well-formed but holds an unusable field is
`InvalidContent` (422) naming it. A client that leaves raises Starlette's `ClientDisconnect`, which
`service.api.middleware.access_log` records as 499. The parsers are plain functions of bytes: for large bodies, call them in a
thread.
"""

import asyncio
import time
from math import isfinite
from typing import Any, Final

from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.domain.errors import BodyTooSlow, InvalidContent, MalformedRequest, TooLarge, UnsupportedMedia

MAX_DEPTH: Final = 32
"""Objects and arrays of a JSON body nest at most this deep."""

_MAX_NAME: Final = 200  # characters of a caller's field name that an error repeats
_PARAMETERLESS: Final = frozenset(("application/json", "image/png", "image/jpeg", "image/webp"))  # need no parsing


async def read_body(
    headers: Headers, receive: Receive, *, max_bytes: int, deadline: float, encoded: bool = False
) -> bytes:
    """Read the whole body.

    Args:
        headers: of the request.
        receive: the request's ASGI channel, unread so far.
        max_bytes: largest body accepted, counted on bytes received; a larger Content-Length is refused unread.
        deadline: `time.monotonic()` time by which the last byte must be here.
        encoded: hand a body with a Content-Encoding over as it is, instead of refusing it.

    Raises:
        UnsupportedMedia: the body has a Content-Encoding.
        TooLarge: more than ``max_bytes``.
        BodyTooSlow: the deadline passed.
        ClientDisconnect: the client left first.
    """
    coding = headers.get("content-encoding", "identity").strip().lower()
    if not encoded and coding not in ("", "identity"):
        raise UnsupportedMedia("Content-Encoding: bodies must be sent without one")
    length = headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > max_bytes):
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as exc:
        raise BodyTooSlow("the body did not arrive in time") from exc


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body is larger than {max_bytes} bytes")


def media_type(header: str | None) -> tuple[str, dict[str, str]]:
    """A Content-Type header as lower-case type and its parameters; an absent one is ``("", {})``."""
    if header in _PARAMETERLESS:
        return header, {}
    kind, options = parse_options_header(header)
    return kind.decode("latin-1").strip(), {
        name.decode("latin-1"): value.decode("latin-1") for name, value in options.items()
    }


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object; of a key given twice the last value counts.

    Raises:
        MalformedRequest: not UTF-8, not JSON, NaN or Infinity, or nested deeper than `MAX_DEPTH`.
        InvalidContent: not an object, or a number beyond float64 (1e400).
    """
    try:
        value = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as exc:
        raise MalformedRequest(f"the body is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InvalidContent.field("body", "must be a JSON object")
    _check_values(value)
    return value


_FieldPath = tuple["_FieldPath", str | int] | None  # the way from the body to a node, last step first


def _check_values(body: dict[str, Any]) -> None:
    """Raise for containers that nest too deep and for infinite numbers."""
    # An explicit stack, and field names are put together only for an error: OIP bodies hold 50 000 numbers.
    stack: list[tuple[dict[str, Any] | list[Any], _FieldPath, int]] = [(body, None, 1)]
    while stack:
        node, trail, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise MalformedRequest(f"the body nests deeper than {MAX_DEPTH} levels")
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            kind = type(value)
            if kind is dict or kind is list:
                stack.append((value, (trail, key), depth + 1))
            elif kind is float and not isfinite(value):
                raise InvalidContent.field(_format_path((trail, key)), "beyond the range of numbers")


def _format_path(trail: _FieldPath) -> str:
    parts: list[str] = []
    while trail is not None:
        trail, key = trail
        parts.append(str(key))
    return printable_name(".".join(reversed(parts)))


def printable_name(name: str) -> str:
    """A caller's field name as an error may repeat it: bounded, and free of half surrogate pairs."""
    return name[:_MAX_NAME].encode("utf-8", "replace").decode("utf-8")
