"""One request to an endpoint that runs a model: its head, body, deadline, codec jobs and timing.

A JSON body with a syntax error raises `MalformedRequest` (400). A well-formed body with an invalid value raises
`InvalidContent` (422), which names the field. If the client disconnects, Starlette's `ClientDisconnect` is raised.
The parsers are synchronous: large bodies are parsed in the codec pool.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from io import BytesIO
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.api.app_state import AppState
from service.api.negotiation import Json, Media, negotiate
from service.api.problems import describe
from service.domain.errors import (
    BodyTooSlow,
    DeadlineExceeded,
    InvalidContent,
    MalformedRequest,
    TooLarge,
    UnsupportedMedia,
)
from service.domain.tasks import Result
from service.images.pool import Job
from service.models.registry import ServedModel

if TYPE_CHECKING:
    from service.observability.tracing import RequestSpans

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)

MAX_DEPTH: Final = 32  # of nested objects and arrays in a JSON body
MAX_VALUES: Final = 200_000
"""Most values in a JSON body, objects and arrays included. Parsing and rejecting one takes about 1 µs and 200 bytes, so
16 MiB of empty objects would take many seconds and a gigabyte. The largest request has one image for each of at most
65 536 images. Bodies of the Open Inference Protocol hold more numbers; `service.api.oip.tensors` adds them."""

_NO_LIMIT: Final = nullcontext()
MIN_HELD: Final = 1 << 12  # bytes; fewer are not worth counting: 1024 requests hold 4 MiB of them
_MAX_NAME: Final = 200  # characters of a field name from the request that an error repeats
# The usual values of Content-Type. They have no parameters, so they need no parser.
_PARAMETERLESS: Final = frozenset(("application/json", "image/png", "image/jpeg", "image/webp"))
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class RequestHeaders:
    """The header fields of a request, found by name in constant time; of repeated ones, `get` returns the first."""

    def __init__(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        self.fields = fields
        self._first = dict(reversed(fields))

    def get(self, key: str, default: Any = None) -> Any:
        """The value of the field, or ``default``."""
        value = self._first.get(field_name(key))
        return default if value is None else value.decode("latin-1")

    def getlist(self, key: str) -> list[str]:
        """Every value of a field, in order."""
        name = field_name(key)
        if name not in self._first:
            return []
        return [value.decode("latin-1") for each, value in self.fields if each == name]


@lru_cache
def field_name(key: str) -> bytes:
    """The name of a header as ASGI has it."""
    return key.lower().encode("latin-1")


class NotModified(Exception):
    """The caller has the response already (304); raised by the stages of the pipeline, with the response's headers."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__()
        self.headers = headers


class ApiRequest:
    """A request to an endpoint that runs a model: its deadline, body, codec jobs and timing.

    To make one raises `NotReady` or `Draining` if the service accepts no requests now, and `MalformedRequest` if
    X-Request-Timeout is not a number of seconds above 0. `service.api.application` has set its ``state``.
    """

    def __init__(
        self,
        services: AppState,
        endpoint: str,
        query: bytes,
        headers: RequestHeaders,
        state: dict[str, Any],
        receive: Receive,
    ) -> None:
        self.services, self.endpoint, self.query, self.headers = services, endpoint, query, headers
        if services.phase != "serving":
            services.require_serving()
        self.state, self.receive = state, receive
        self.arrival: float = state["arrival"]
        self.request_id: str = state["request_id"]
        self.caller: str = state["caller"]
        self.spans: RequestSpans | None = state.get("spans")
        timeout = headers.get("x-request-timeout")
        max_timeout = services.settings.request_timeout_s
        self.deadline: float = self.arrival + (max_timeout if timeout is None else min(_seconds(timeout), max_timeout))
        self.stream_deadline = self.arrival + services.settings.stream_timeout_s
        self.seconds = {"decode": 0.0, "queue": 0.0, "compute": 0.0, "encode": 0.0}
        self.content_type = parse_content_type(headers.get("content-type"))[0]  # of the body, in lower case; else ""
        self.media = Media.JSON  # of the response, once it is negotiated
        self.is_over = False  # the response is complete or the client has gone; a codec job of the request then stops

    def negotiate(self, offers: tuple[Media, ...]) -> Media:
        """The media type of the response; raises `NotAcceptable` if the caller accepts none of the offers."""
        return negotiate(", ".join(self.headers.getlist("accept")) or None, offers)

    async def read_body(self) -> bytes:
        """The whole body, within the limits of size and time."""
        settings = self.services.settings
        body_deadline = self.arrival + settings.body_timeout_s
        try:
            body = await read_body(
                self.headers,
                self.receive,
                max_bytes=settings.max_body_bytes,
                setting=" (IGN_MAX_BODY_BYTES)",
                seconds=min(body_deadline, self.deadline) - self.services.clock(),
                hold=partial(self.services.in_flight.hold, self.state),
                is_received="is_received" in self.state,
            )
        except BodyTooSlow as exc:
            if self.deadline < body_deadline:
                raise DeadlineExceeded("the deadline passed") from exc
            raise
        self.state["request_bytes"] = len(body)
        return body

    def reject_query(self) -> None:
        """Raise `InvalidContent` if the request has query parameters; its options belong in the body."""
        for name in QueryParams(self.query) if self.query else ():
            raise InvalidContent.field(printable_name(name), "unknown query parameter; options belong in the body")

    def resolve(self, name: str | None) -> ServedModel:
        """Resolve the requested model, and record its name for the metrics."""
        model = self.services.registry.resolve(name)
        self.state["model"] = model.ref
        return model

    def check_not_over(self) -> None:
        """Raise `DeadlineExceeded` if nobody waits for this request any more; codec jobs call it before every image.

        Thread-safe: it reads one flag that the event loop sets.
        """
        if self.is_over or self.services.clock() > self.deadline:
            raise DeadlineExceeded("the deadline passed")

    async def run_codec(self, part: str, job: Job[T]) -> T:
        """Run a large job in the codec pool until the deadline; its time counts as ``part``, `decode` or `encode`."""
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self.deadline - self.services.clock()):
                return await self.services.codec.run(part, job, self.caller)  # the pool records the metric
        except TimeoutError as exc:
            raise DeadlineExceeded("the deadline passed") from exc
        except asyncio.CancelledError:
            self.is_over = True
            raise
        finally:
            self.spend(part, time.perf_counter() - start)

    def spend(self, part: str, seconds: float) -> None:
        """Add to the time of a part of this request, and to its trace."""
        self.seconds[part] += seconds
        if self.spans is not None:
            self.spans.add(part, seconds)

    def response_headers(self, model: ServedModel, seed: int | None = None) -> dict[str, str]:
        """Headers of every successful answer."""
        headers = {
            "X-IGN-Model": model.tag,
            "Server-Timing": ", ".join([f"{part};dur={seconds * 1e3:.1f}" for part, seconds in self.seconds.items()]),
            "Vary": "Accept",
        }
        if seed is not None:
            headers["X-IGN-Seed"] = str(seed)
        return headers

    def timing(self) -> dict[str, float]:
        """The member `timing` of a JSON answer, in milliseconds."""
        return {f"{part}_ms": round(seconds * 1e3, 3) for part, seconds in self.seconds.items()}


def count_rows(ended: Sequence[tuple[ApiRequest, ServedModel, Result]]) -> None:
    """Add finished requests to their timing, to the metrics and to their log lines."""
    together: dict[tuple[str, str, str | None], list[Result]] = {}
    for api, model, result in ended:
        api.state["queue_s"], api.state["compute_s"] = result.queue_s, result.compute_s
        api.seconds["queue"] += result.queue_s
        api.seconds["compute"] += result.compute_s
        together.setdefault((model.ref, api.endpoint, api.state.get("api_key")), []).append(result)
    for (ref, endpoint, api_key), results in together.items():
        ended[0][0].services.metrics.rows(
            ref,
            endpoint,
            [steps for result in results for steps in result.steps.tolist()],
            [distance for result in results for distance in result.distance.tolist()],
            [drift for result in results if result.drift is not None for drift in result.drift.tolist()],
            api_key=api_key,
        )


def _seconds(header: str) -> float:
    seconds = float(header) if _SECONDS.fullmatch(header) else 0.0
    if not seconds > 0:
        raise MalformedRequest("X-Request-Timeout: must be decimal seconds above 0")
    return seconds


def parse_as(schema: type[Body], body: bytes, *, max_values: int = MAX_VALUES) -> Body:
    """A JSON body as ``schema``; an empty body counts as `{}`. Raises `InvalidContent`, and as `parse_json`."""
    try:
        return schema.model_validate(parse_json(body, max_values=max_values) if body else {})
    except ValidationError as exc:  # formatted here, in the codec pool: a large body can hold 100 000 errors
        problem = describe(exc)
        raise InvalidContent(problem.detail, fields=problem.fields) from exc


def count_codec(part: str, requests: Sequence[ApiRequest], start: float) -> None:
    """Count one codec call on the event loop for several requests, each of which has its share of the time.

    ``start`` is when it began, by `time.perf_counter`.
    """
    seconds = time.perf_counter() - start
    requests[0].services.metrics.codec(part, seconds)
    for api in requests:
        api.spend(part, seconds / len(requests))


async def read_body(
    headers: RequestHeaders,
    receive: Receive,
    *,
    max_bytes: int,
    setting: str = "",
    seconds: float,
    hold: Callable[[int], None] | None = None,
    is_received: bool = False,
) -> bytes:
    """Read the whole body, at most ``max_bytes``; a larger Content-Length is rejected before reading.

    ``setting`` ends the error for it.
    The last byte must arrive within ``seconds``, unless the server has all of it (``is_received``).
    ``hold`` is called with the number of bytes whenever more than 4 KiB have arrived; it raises if they are too many.

    Raises `UnsupportedMedia` for a Content-Encoding, else `TooLarge`, `BodyTooSlow` or `ClientDisconnect`.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMedia("Content-Encoding: bodies must be sent without one")
    length = headers.get("content-length", "")
    # `int` takes quadratic time in the number of digits, so a very long number is not converted.
    if length.isdecimal() and (len(length) > 18 or int(length) > max_bytes):
        raise _too_large(max_bytes, setting)
    body, size, counted, more = BytesIO(), 0, 0, True  # its value is not copied at the end, as that of a bytearray
    try:
        async with _NO_LIMIT if is_received else asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece = message.get("body", b"")
                size += len(piece)
                if size > max_bytes:
                    raise _too_large(max_bytes, setting)
                body.write(piece)
                if hold is not None and size - counted > MIN_HELD:
                    hold(size - counted)
                    counted = size
                more = message.get("more_body", False)
            return body.getvalue()
    except TimeoutError as exc:
        raise BodyTooSlow("the body did not arrive in time") from exc


def _too_large(max_bytes: int, setting: str) -> TooLarge:
    return TooLarge(f"the body is larger than {max_bytes} bytes{setting}")


def parse_content_type(header: str | None) -> tuple[str, dict[str, str]]:
    """Parse a Content-Type header into media type, in lower case, and parameters; ``("", {})`` without a header."""
    if header in _PARAMETERLESS:
        return header, {}
    name, parameters = parse_options_header(header)
    return name.decode("latin-1").strip(), {
        key.decode("latin-1"): value.decode("latin-1") for key, value in parameters.items()
    }


def parse_json(body: bytes, *, max_values: int = MAX_VALUES) -> Json:
    """Parse a JSON object with a limited number of values; if a key occurs twice, its last value counts.

    Raises `MalformedRequest` if it is not UTF-8, not JSON, has NaN or Infinity, or nests deeper than `MAX_DEPTH`; and
    `InvalidContent` if it is not an object, has too many values, or a number beyond float64 (1e400).
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


def _check_values(body: Json) -> None:
    """Raise if containers nest too deep or a number is infinite."""
    # A stack instead of recursion, because nesting is the caller's choice. A field's path becomes text only for an
    # error, because bodies of the Open Inference Protocol hold 50 000 numbers.
    stack: list[tuple[Json | list[Any], _FieldPath, int]] = [(body, None, 1)]
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
