"""Request bodies: read within a byte cap and a deadline, then parsed strictly.

Whatever arrives broken is `MalformedRequest` (400); whatever is well-formed but holds an unusable field is
`InvalidContent` (422) naming it. A client that leaves raises Starlette's `ClientDisconnect`, which
`service.api.middleware.access_log` records as 499. The parsers are plain functions of bytes: for large bodies, call them in a
thread.
"""

import asyncio
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.domain.errors import BodyTooSlow, InvalidContent, MalformedRequest, TooLarge, UnsupportedMedia

MAX_DEPTH: Final = 32
"""Objects and arrays of a JSON body nest at most this deep."""

_MAX_NAME: Final = 200  # characters of a caller's field name that an error repeats
_PLAIN: Final = frozenset(("application/json", "image/png", "image/jpeg", "image/webp"))  # need no parsing
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int, deadline: float, encoded: bool = False) -> bytes:
    """Read the whole body.

    Args:
        scope: the request's ASGI scope.
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
    headers = Headers(scope=scope)
    coding = headers.get("content-encoding", "identity").strip().lower()
    if not encoded and coding not in ("", "identity"):
        raise UnsupportedMedia("Content-Encoding: bodies must be sent without one")
    length = headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > max_bytes):
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await _receive_all(receive, max_bytes)
    except TimeoutError as exc:
        raise BodyTooSlow("the body did not arrive in time") from exc


async def _receive_all(receive: Receive, max_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body is larger than {max_bytes} bytes")


def media_type(header: str | None) -> tuple[str, dict[str, str]]:
    """A Content-Type header as lower-case type and its parameters; an absent one is ``("", {})``."""
    if header in _PLAIN:
        return header, {}
    kind, options = parse_options_header(header)
    return kind.decode("latin-1").strip(), {
        name.decode("latin-1"): value.decode("latin-1") for name, value in options.items()
    }


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object, strictly: every key once, every number finite, every string valid Unicode.

    Raises:
        MalformedRequest: not UTF-8, not JSON, NaN or Infinity, or nested deeper than `MAX_DEPTH`.
        InvalidContent: not an object, a key given twice, a number beyond float64 (1e400), half a surrogate pair.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise MalformedRequest("the body is not UTF-8") from exc
    value = _decode(text)
    if not isinstance(value, dict):
        raise InvalidContent.field("body", "must be a JSON object")
    _check(value)
    return value


def _decode(text: str, parse_int: Callable[[str], float] = int) -> Any:
    try:
        return json.loads(text, parse_int=parse_int, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as exc:
        raise MalformedRequest(f"the body is not JSON: {exc.msg} at character {exc.pos}") from exc
    except RecursionError as exc:
        raise _too_deep() from exc
    except ValueError:
        # An integer of thousands of digits, which Python refuses to convert. As a float it is infinite, and the
        # check that follows names its place.
        return _decode(text, float)


def _refuse_constant(name: str) -> Any:
    raise MalformedRequest(f"the body is not JSON: {name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InvalidContent.field(_shown(twice), "given twice")
    for key in found:
        if fault := _fault(key):
            raise InvalidContent.field(_shown(key), fault)
    return found


_Trail = tuple["_Trail", str | int] | None  # the way from the body to a node, last step first


def _check(body: dict[str, Any]) -> None:
    # A stack instead of recursion, and no place is spelled out before it is needed: OIP bodies hold 50 000 numbers.
    stack: list[tuple[dict[str, Any] | list[Any], _Trail, int]] = [(body, None, 1)]
    while stack:
        node, trail, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise _too_deep()
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            kind = type(value)
            if kind is dict or kind is list:
                stack.append((value, (trail, key), depth + 1))
            elif fault := _fault(value):
                raise InvalidContent.field(_spell((trail, key)), fault)


def _fault(leaf: Any) -> str | None:
    if isinstance(leaf, float) and not math.isfinite(leaf):
        return "beyond the range of numbers"
    if isinstance(leaf, str) and not leaf.isascii() and _SURROGATE.search(leaf):
        return "holds half of a surrogate pair"
    return None


def _spell(trail: _Trail) -> str:
    parts: list[str] = []
    while trail is not None:
        trail, key = trail
        parts.append(str(key))
    return _shown(".".join(reversed(parts)))


def _shown(name: str) -> str:
    """A caller's field name as an error may repeat it: bounded, and free of half surrogate pairs."""
    return name[:_MAX_NAME].encode("utf-8", "replace").decode("utf-8")


def _too_deep() -> MalformedRequest:
    return MalformedRequest(f"the body nests deeper than {MAX_DEPTH} levels")
