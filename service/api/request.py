"""One request, from its head to its line in the log.

    begin ─▶ admit ─▶ body ─▶ parse ─▶ decode ─▶ submit ─▶ respond ─▶ record

`service.api.application` begins, admits and records it; `service.api.pipeline` runs the stages
between. Each step fills what later ones read, so no part of the service keeps a record of its own.
"""

import asyncio
import math
import re
import time
from collections.abc import Mapping
from http import HTTPStatus
from io import BytesIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from service.api.app_state import AppState
from service.api.message import (
    MIN_HELD,
    WHOLE_RESPONSE,
    RequestHeaders,
    parse_content_type,
    printable_name,
)
from service.api.negotiation import Media, negotiate
from service.api.problems import describe, log_failure, status_of
from service.domain.accounts import Epoch, Rate
from service.domain.errors import (
    BodyTooSlow,
    DeadlineExceeded,
    IgnError,
    InvalidContent,
    MalformedRequest,
    TooLarge,
    UnsupportedMedia,
)
from service.images.pool import Job
from service.models.registry import ServedModel
from service.observability.logs import RequestRecord

if TYPE_CHECKING:
    from service.observability.tracing import RequestSpans

T = TypeVar("T")

UNMATCHED: Final = "unmatched"
RawHeaders = list[tuple[bytes, bytes]]
"""Header fields as ASGI has them."""

LARGE_BODY: Final = 1 << 15  # bytes; parsing more takes longer than waking a thread
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
# of a body that is received without a valid key, and thrown away
_UNWANTED_BYTES: Final = 1 << 16


class NotModified(Exception):
    """The caller has the response already (304); raised by the stages of the pipeline, with the
    response's headers.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__()
        self.headers = headers


class Route(NamedTuple):
    """What a path belongs to: a template for logs and metrics, and its endpoints by method."""

    template: str = UNMATCHED
    endpoints: Mapping[str, Any] = MappingProxyType({})  # `Endpoint`
    parameters: Mapping[str, str] = MappingProxyType({})
    access: str = "key"
    is_probe: bool = False


class Plan(NamedTuple):
    """What a request takes, known before any of its pixels is decoded. It is admitted, and runs, as
    planned.

    The headers of images are read first only if it depends on them (`Work.must_open`): to read them
    in a job of its own, before the one that decodes, costs a small JPEG a fifth more CPU.
    """

    rows: int
    """Rows, or tiles of images of any size."""
    bytes: int
    """What the response and the arrays that it is made from take, at most."""


class ApiRequest(RequestRecord):
    """One request. It belongs to the event loop, but a job of the codec pool may parse its body,
    and set its model.

    ``seconds`` has durations by part. ``arrival`` and the deadlines are times on `AppState.clock`,
    in seconds.
    """

    # What later steps fill.
    error: IgnError | None = None  # of the head
    quota: Rate | None = None
    spans: "RequestSpans | None" = None  # if the trace is recorded
    epoch: Epoch | None = None  # once it is admitted
    held_bytes = 0  # of its body, its response and the arrays that it is made from
    deadline = stream_deadline = math.inf
    content_type = ""  # of the body, in lower case
    media = Media.JSON  # of the response, once it is negotiated

    # Of the pipeline. `progress` ends when the task of the request has something to do again.
    body = b""
    inline_body = LARGE_BODY  # bytes; a longer one is parsed in the codec pool
    progress: "asyncio.Future[None] | None" = None
    task: "asyncio.Task[Any] | None" = None  # while it can be cancelled because the client has gone
    is_gone = False
    # the response is complete or the client has gone; a codec job of the request then stops
    is_over = False
    work: Any = None  # `Work`, once the body is parsed

    # Of the response.
    started = complete = False
    held: Message | None = None  # the last part of the body, until `send_held`

    def __init__(
        self,
        services: AppState,
        scope: Scope,
        receive: Receive,
        send: Send,
        route: Route,
        path: str,
    ) -> None:
        self.services = services
        self.settings = services.settings
        self.scope = scope
        self.receive = receive
        self._send = send
        self.method = scope["method"]
        self.path = path
        self.route = route
        self.endpoint = route.template
        self.query: bytes = scope["query_string"]
        self.headers = RequestHeaders(scope["headers"])
        self.state: dict[str, Any] = scope["state"]  # `service.server` shares it
        self.peer = scope["client"][0] if scope.get("client") else None
        # The server sets it for requests that wait on their connection.
        self.arrival: float = self.state.get("arrival") or services.clock()
        self.seconds = {"decode": 0.0, "queue": 0.0, "compute": 0.0, "encode": 0.0}
        self.added: RawHeaders = []  # to every response
        self._head: Message = {}
        # it holds the scope
        self._send_whole = scope.get("extensions", {}).pop(WHOLE_RESPONSE, None)

    # Body and stages

    def accept(self) -> None:
        """Begin a request that runs a model: set its deadlines.

        Raises `NotReady` or `Draining` if the service accepts no requests now, and
        `MalformedRequest` if X-Request-Timeout is not a number of seconds above 0.
        """
        services = self.services
        if services.phase != "serving":
            services.require_serving()
        settings = self.settings
        seconds = settings.request_timeout_s
        timeout = self.headers.get(b"x-request-timeout")
        if timeout is not None:
            seconds = min(_seconds(timeout), seconds)
        self.deadline = self.arrival + seconds
        self.stream_deadline = self.arrival + settings.stream_timeout_s
        self.content_type = parse_content_type(self.headers.get(b"content-type"))

    def negotiate(self, offers: tuple[Media, ...]) -> None:
        """Choose the media type of the response; raises `NotAcceptable` if the caller accepts none
        of the offers.
        """
        self.media = negotiate(", ".join(self.headers.getlist(b"accept")) or None, offers)

    async def read_body(self, max_bytes: int | None = None) -> bytes:
        """The whole body, of at most ``max_bytes`` or IGN_MAX_BODY_BYTES; one that is announced as
        longer is rejected before reading.

        Bytes are held as they arrive. Raises `UnsupportedMedia` for a Content-Encoding, else
        `TooLarge`, `BodyTooSlow`, `DeadlineExceeded` or `ClientDisconnect`.
        """
        settings = self.settings
        encoding = self.headers.get(b"content-encoding", "")
        if encoding.strip().lower() not in ("", "identity"):
            raise UnsupportedMedia("Content-Encoding: bodies must be sent without one")
        limit = max_bytes or settings.max_body_bytes
        deadline = min(self.arrival + settings.receive_timeout_s, self.deadline)
        try:
            if "is_received" in self.state:  # the server has all of it: a timer would take time
                body = await self._receive_body(limit)
            else:
                async with asyncio.timeout(deadline - self.services.clock()):
                    body = await self._receive_body(limit)
        except TimeoutError as exc:
            if deadline == self.deadline:
                raise DeadlineExceeded("the deadline passed") from exc
            raise BodyTooSlow("the body did not arrive in time") from exc
        if body is None:
            name = "" if max_bytes else " (IGN_MAX_BODY_BYTES)"
            raise TooLarge(f"the body is larger than {limit} bytes{name}")
        self.request_bytes = len(body)
        return body

    async def _receive_body(self, limit: int) -> bytes | None:
        """The whole body, or None if it is longer than ``limit``."""
        # The server has checked that it is a number of at most 64 bits.
        if int(self.headers.get(b"content-length", 0)) > limit:
            return None
        # Its value is not copied at the end, as that of a bytearray.
        body = BytesIO()
        counted = 0
        more = True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
            body.write(message.get("body", b""))
            size = body.tell()
            if size > limit:
                return None
            if size - counted > MIN_HELD:
                self.hold(size - counted)
                counted = size
        return body.getvalue()

    def has_large_body(self) -> bool:
        """Whether the body is too long to be received and thrown away."""
        size = int(self.headers.get(b"content-length", 0))
        return b"transfer-encoding" in self.headers or size > _UNWANTED_BYTES

    def hold(self, size: int) -> None:
        """Count bytes until the request ends; raises as `InFlightRequests.hold`."""
        self.services.in_flight.hold(self.caller, self.held_bytes, size)
        self.held_bytes += size

    def hold_plan(self, plan: Plan, steps: int) -> None:
        """Count what the request takes, once, on the event loop: the place of every limit on it.
        Raises as `hold`.
        """
        self.rows = plan.rows
        self.steps = steps
        if plan.bytes > MIN_HELD:
            self.hold(plan.bytes)

    def reject_query(self) -> None:
        """Raise `InvalidContent` if the request has query parameters; its options belong in the
        body.
        """
        for name in QueryParams(self.query) if self.query else ():
            raise InvalidContent.field(
                printable_name(name), "unknown query parameter; options belong in the body"
            )

    def resolve(self, name: str | None) -> ServedModel:
        """Resolve the requested model, and record its name for the metrics."""
        model = self.services.registry.resolve(name)
        self.model = model.ref
        self.names_model = name is not None  # else it gets the default
        return model

    @property
    def ref(self) -> str:
        """The model in the path, `name` or `name/version`."""
        return "/".join(self.route.parameters.values())

    def named_model(self) -> ServedModel:
        """The model in the path, if the service serves."""
        self.services.require_serving()
        return self.services.registry.resolve(self.ref)

    def check_not_over(self) -> None:
        """Raise `DeadlineExceeded` if nobody waits for this request any more; codec jobs call it
        before every image.

        Thread-safe: it reads one flag that the event loop sets.
        """
        if self.is_over or self.services.clock() > self.deadline:
            raise DeadlineExceeded("the deadline passed")

    async def run_codec(self, part: str, job: Job[T]) -> T:
        """Run a large job in the codec pool until the deadline; its time counts as ``part``,
        `decode` or `encode`.
        """
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self.deadline - self.services.clock()):
                # the pool records the metric
                return await self.services.codec.run(part, job, self.caller)
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

    def advance(self) -> None:
        """Let the task of the request continue."""
        if self.progress is not None and not self.progress.done():
            self.progress.set_result(None)

    def fail(self, exc: Exception) -> None:
        """End the stages with an error."""
        if self.progress is not None and not self.progress.done():
            self.progress.set_exception(exc)

    def disconnect(self) -> None:
        """End the stages, because the client has gone; the server calls it."""
        if self.task is not None:
            self.is_gone = True
            self.is_over = True
            self.task.cancel()

    def release(self) -> None:
        """Drop what belongs to the connection, when the response has been sent: a line of the log
        may wait long.
        """
        del (
            self.scope,
            self.receive,
            self._send,
            self._send_whole,
            self._head,
            self.headers,
            self.state,
        )

    # Response

    def describe(self, exc: Exception) -> IgnError:
        """What the caller is told of an exception that ends the request; one of ours is logged."""
        error = describe(exc, self.path)
        self.problem = error.error_code
        if status_of(type(error)) == HTTPStatus.INTERNAL_SERVER_ERROR:
            log_failure(exc, self.request_id)
        return error

    def timing(self) -> dict[str, float]:
        """The member `timing` of a JSON answer, in milliseconds."""
        return {f"{part}_ms": round(seconds * 1e3, 3) for part, seconds in self.seconds.items()}

    def send_whole(self, status: int, headers: RawHeaders, body: bytes | memoryview) -> bool:
        """Send a whole response in one call, if the server can; it needs no `send_held`."""
        if self._send_whole is None or self.method == "HEAD":
            return False
        if not self._send_whole(status, [*headers, *self.added], body):
            return False
        self.started = self.complete = True
        self.status = status
        self.response_bytes = len(body)
        return True

    async def send(self, message: Message) -> None:
        """Pass a message of the response on to the server; the head waits for the first part of the
        body.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._head = message
            return
        self.response_bytes += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        # An error, or a scrape, whose text is long, waits for earlier ones of its caller.
        is_paced = self.status >= HTTPStatus.BAD_REQUEST or self.route.access == "metrics"
        if self.complete and is_paced:
            self.held = message
            return
        await self._send_on(message)

    async def _send_on(self, message: Message) -> None:
        if not self.started:
            headers = self._head.get("headers", [])
            if self.complete and self.send_whole(self.status, headers, message.get("body", b"")):
                return
            self.started = True
            await self._send({**self._head, "headers": [*headers, *self.added]})
        await self._send(message)

    async def send_held(self) -> None:
        """Send the last part of a response, which `send` has held back, when it may come."""
        if self.held is not None:
            await asyncio.sleep(self.services.rates.pause(self.caller))
            await self._send_on(self.held)


def raw_headers(headers: Mapping[str, str]) -> RawHeaders:
    """Header fields as ASGI has them."""
    return [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()
    ]


def _seconds(header: str) -> float:
    seconds = float(header) if _SECONDS.fullmatch(header) else 0.0
    if not seconds > 0:
        raise MalformedRequest("X-Request-Timeout: must be decimal seconds above 0")
    return seconds
