"""One request to an endpoint that runs a model: its caller, deadline, body, codec jobs and timing."""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams
from starlette.types import Receive

from service.api.app_state import AppState
from service.api.body import MAX_VALUES, HeaderFields, parse_content_type, parse_json, printable_name, read_body
from service.api.negotiation import Media, negotiate
from service.api.problems import describe
from service.domain.errors import BodyTooSlow, DeadlineExceeded, InvalidContent, MalformedRequest
from service.domain.tasks import Result
from service.models.registry import ServedModel

if TYPE_CHECKING:
    from service.observability.tracing import RequestSpans

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)

_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class ApiRequest:
    """A request to an endpoint that runs a model: its deadline, body, codec jobs and timing.

    Args:
        services: the running parts of the service.
        endpoint: template of the route.
        query: the query string, undecoded.
        headers: of the request.
        state: arrival time, request id and caller, as `service.api.application` sets them.
        receive: the ASGI channel.

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
        self.seconds = {"decode": 0.0, "queue": 0.0, "compute": 0.0, "encode": 0.0}
        self.content_type = parse_content_type(headers.get("content-type"))[0]
        """Media type of the body in lower case, without parameters; empty where there is none."""
        self.media = Media.JSON
        """Media type of the response, once it is negotiated."""
        self.is_over = False
        """Whether the response is complete or the client has gone; a codec job of the request then stops."""

    def negotiate(self, offers: tuple[Media, ...]) -> Media:
        """The media type of the answer.

        Raises:
            NotAcceptable: the caller accepts none of the offers.
        """
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
                deadline=min(body_deadline, self.deadline),
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
        if self.is_over or time.monotonic() > self.deadline:
            raise DeadlineExceeded("the deadline passed")

    async def run_codec(self, part: str, job: Callable[[], T]) -> T:
        """Run a large job in the codec pool; its time counts as ``part``, `decode` or `encode`.

        Raises:
            DeadlineExceeded: the job had not ended when the deadline passed.
        """
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                return await self.services.codec.run(part, job)  # the pool records the metric
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
    """A JSON body as ``schema``, with at most ``max_values`` values; an empty body counts as `{}`.

    Raises:
        InvalidContent, MalformedRequest: the body does not fit the schema, or is not JSON.
    """
    try:
        return schema.model_validate(parse_json(body, max_values=max_values) if body else {})
    except ValidationError as exc:  # formatted here, in the codec pool: a large body can hold 100 000 errors
        problem = describe(exc)
        raise InvalidContent(problem.detail, fields=problem.fields) from exc


def count_codec(part: str, requests: Sequence[ApiRequest], seconds: float) -> None:
    """Count one codec call on the event loop for several requests, each of which has its share of the time."""
    requests[0].services.metrics.codec(part, seconds)
    for api in requests:
        api.spend(part, seconds / len(requests))
