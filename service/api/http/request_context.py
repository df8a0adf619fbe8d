"""One request to an endpoint that runs a model: its caller, deadline, body, codec jobs and timing."""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.types import Message, Receive

from service.api.app_state import AppState, app_state
from service.api.http.body import MAX_VALUES, HeaderFields, parse_content_type, parse_json, printable_name, read_body
from service.api.http.negotiation import Media, negotiate
from service.api.http.problems import describe
from service.domain.errors import BodyTooSlow, DeadlineExceeded, InvalidContent, MalformedRequest, UnsupportedMedia
from service.domain.tasks import Result
from service.models.registry import ServedModel

if TYPE_CHECKING:
    from service.observability.tracing import RequestSpans

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)

LARGE_BODY: Final = 1 << 15  # bytes; a larger body is parsed in the codec pool
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


async def no_body() -> Message:
    """The ASGI channel of a request whose body has been read."""
    raise RuntimeError("the body has been read")


class ApiRequest:
    """A request to an endpoint that runs a model: its deadline, body, codec jobs and timing.

    Args:
        services: the running parts of the service.
        endpoint: template of the route.
        query: the query string.
        headers: of the request.
        state: arrival time, request id and caller, as `AccessLogMiddleware` sets them.
        receive: the ASGI channel; a request whose body is there needs none.

    Raises:
        NotReady, Draining: the service accepts no requests now.
        MalformedRequest: X-Request-Timeout is not a number of seconds above 0.
    """

    def __init__(
        self,
        services: AppState,
        endpoint: str,
        query: bytes,
        headers: HeaderFields,
        state: dict[str, Any],
        receive: Receive = no_body,
    ) -> None:
        self.services, self.endpoint, self.query, self.headers = services, endpoint, query, headers
        if services.phase != "serving":  # `ConcurrencyLimitMiddleware` rejects requests while draining
            services.require_serving()
        self.state, self.receive = state, receive
        self.arrival: float = state["arrival"]
        self.request_id: str = state["request_id"]
        self.caller: str = state["caller"]
        self.spans: RequestSpans | None = state.get("spans")
        timeout = headers.get("x-request-timeout")
        max_timeout = services.settings.request_timeout_s
        self.deadline: float = self.arrival + (max_timeout if timeout is None else min(_seconds(timeout), max_timeout))
        self.seconds = {"decode": 0.0, "queue": 0.0, "compute": 0.0, "encode": 0.0}
        self._is_over = False

    @classmethod
    def of(cls, request: Request) -> Self:
        """The request of an endpoint."""
        scope = request.scope
        endpoint, query = scope["route"].path, scope["query_string"]
        return cls(app_state(request), endpoint, query, request.headers, scope["state"], request.receive)

    def negotiate(self, offers: tuple[Media, ...]) -> Media:
        """The media type of the answer.

        Raises:
            NotAcceptable: the caller accepts none of the offers.
        """
        return negotiate(", ".join(self.headers.getlist("accept")) or None, offers)

    def content_type(self) -> str:
        """The media type of the body in lower case, without parameters; empty where there is none."""
        return parse_content_type(self.headers.get("content-type"))[0]

    async def read_body(self, *, encoded: bool = False) -> bytes:
        """The whole body, within the limits of size and time.

        Args:
            encoded: return a body with a Content-Encoding as it is, instead of rejecting it.
        """
        settings = self.services.settings
        body_deadline = self.arrival + settings.body_timeout_s
        try:
            body = await read_body(
                self.headers,
                self.receive,
                max_bytes=settings.max_body_bytes,
                deadline=min(body_deadline, self.deadline),
                hold=partial(self.services.in_flight.hold, self.state),
                encoded=encoded,
            )
        except BodyTooSlow as exc:
            if self.deadline < body_deadline:
                raise DeadlineExceeded("the deadline passed") from exc
            raise
        self.state["request_bytes"] = len(body)
        return body

    async def read_json(self, schema: type[Body]) -> Body:
        """A JSON body as ``schema``; an empty body counts as `{}`.

        Raises:
            UnsupportedMedia: another content type.
            InvalidContent, MalformedRequest: the body does not fit the schema, or is not JSON.
        """
        self.reject_query()
        media_type = self.headers.get("content-type")
        if media_type != "application/json":
            media_type = self.content_type()
        body = await self.read_body() if media_type in ("", "application/json") else b""  # other bodies are not read
        if media_type != "application/json" and (media_type or body):
            raise UnsupportedMedia(f"Content-Type: expected application/json, not {media_type or 'none'}")
        return await self.parse(body, partial(parse_as, schema, body))

    async def parse(self, body: bytes, job: Callable[[], T]) -> T:
        """Run ``job``, which parses ``body``: on the event loop, or in the codec pool if the body is large."""
        if len(body) > LARGE_BODY:
            return await self.run_codec("decode", job, large=True)
        start = time.perf_counter()
        parsed = job()
        seconds = time.perf_counter() - start
        self.seconds["decode"] += seconds
        if self.spans is not None:
            self.spans.add("decode", seconds)
        return parsed

    def reject_query(self) -> None:
        """Raise `InvalidContent` if the request has query parameters; its options belong in the body."""
        for name in QueryParams(self.query) if self.query else ():
            raise InvalidContent.field(printable_name(name), "unknown query parameter; options belong in the body")

    def resolve(self, name: str | None) -> ServedModel:
        """Resolve the requested model, and record its name for the metrics.

        Raises:
            UnknownModel: no model of that name serves.
        """
        model = self.services.registry.resolve(name)
        self.state["model"] = model.ref
        return model

    def check_not_over(self) -> None:
        """Raise if nobody waits for a codec job of this request any more; a job calls it between two pictures.

        Thread-safe: it reads one flag that the event loop sets.

        Raises:
            DeadlineExceeded: the deadline has passed, or the client has disconnected.
        """
        if self._is_over or time.monotonic() > self.deadline:
            raise DeadlineExceeded("the deadline passed")

    async def run_codec(self, part: str, job: Callable[[], T], *, large: bool) -> T:
        """Run a codec job; its time counts as ``part``, in this request's timing and in the metrics.

        Args:
            part: `decode` or `encode`.
            job: decodes or encodes; a plain function.
            large: run it in the codec pool; else it runs on the event loop.

        Raises:
            DeadlineExceeded: a job in the pool had not ended when the deadline passed.
        """
        services = self.services
        if large:
            start = time.perf_counter()
            try:
                async with asyncio.timeout(self.deadline - time.monotonic()):
                    return await services.codec.run(part, job)  # the pool records the metric
            except TimeoutError as exc:
                raise DeadlineExceeded("the deadline passed") from exc
            except asyncio.CancelledError:
                self._is_over = True
                raise
            finally:
                seconds = time.perf_counter() - start
                self.seconds[part] += seconds
                if self.spans is not None:
                    self.spans.add(part, seconds)
        if services.in_flight.count > 1:
            return await services.inline.run(partial(self._timed, part, job))
        return self._timed(part, job)

    def _timed(self, part: str, job: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return job()
        finally:
            seconds = time.perf_counter() - start
            self.seconds[part] += seconds
            self.services.metrics.codec(part, seconds)
            if self.spans is not None:
                self.spans.add(part, seconds)

    def count_rows(self, model: ServedModel, result: Result) -> None:
        """Add a finished request to the timing, to the metrics and to the log line."""
        count_rows([(self, model, result)])

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
    """As `ApiRequest.count_rows`, for several requests."""
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
    """A JSON body as ``schema``, with at most ``max_values`` values; an empty body counts as `{}`.

    Raises:
        InvalidContent, MalformedRequest: the body does not fit the schema, or is not JSON.
    """
    try:
        return schema.model_validate(parse_json(body, max_values=max_values) if body else {})
    except ValidationError as exc:  # formatted here, in the codec pool: a large body can hold 100 000 errors
        problem = describe(exc)
        raise InvalidContent(problem.detail, fields=problem.fields) from exc
