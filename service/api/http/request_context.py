"""One native request on its way: who calls, until when, what they accept, and how long each part took."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request

from service.api.app_state import AppState, services
from service.api.http.body import media_type, parse_json, read_body
from service.api.http.negotiation import Media, negotiate
from service.api.http.problems import describe
from service.domain.errors import BodyTooSlow, DeadlineExceeded, InvalidContent, MalformedRequest, UnsupportedMedia
from service.domain.tasks import Result
from service.models.engine import Call
from service.models.repository import LoadedModel

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)

_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_ASIDE: Final = 1 << 15  # bytes: a larger body is parsed in the codec pool


class ApiRequest:
    """What every native endpoint does with its request, apart from what it is about.

    Raises:
        NotReady, Draining: the service cannot answer now.
        MalformedRequest: a header is no valid value.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.services: AppState = services(request)
        self.services.require_ready()
        self.headers = Headers(scope=request.scope)
        self.arrival: float = request.state.arrival
        self.request_id: str = request.state.request_id
        self.deadline = self._deadline()
        self.call = Call(key=request.state.caller, deadline=self.deadline)
        self.seconds = {"decode": 0.0, "queue": 0.0, "compute": 0.0, "encode": 0.0}

    def accept(self, offers: Collection[Media]) -> Media:
        """The form of the answer.

        Raises:
            NotAcceptable: the caller wants none of the offers.
        """
        return negotiate(", ".join(self.headers.getlist("accept")) or None, offers)

    def content_type(self) -> tuple[str, dict[str, str]]:
        """Media type of the body, lower case, and its parameters."""
        return media_type(self.headers.get("content-type"))

    async def body(self, *, encoded: bool = False) -> bytes:
        """The whole body, within the limits of size and time; ``encoded``: it may have a Content-Encoding."""
        settings = self.services.settings
        deadline = self.arrival + settings.body_timeout_s
        try:
            return await read_body(
                self.request.scope,
                self.request.receive,
                max_bytes=settings.max_body_bytes,
                deadline=min(deadline, self.deadline),
                encoded=encoded,
            )
        except BodyTooSlow as exc:
            if self.deadline < deadline:
                raise DeadlineExceeded("the deadline passed") from exc
            raise

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Hold the parts that the scheduler does not time to the caller's deadline too.

        Raises:
            DeadlineExceeded: the block was still waiting when the deadline passed.
        """
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                yield
        except TimeoutError as exc:
            raise DeadlineExceeded("the deadline passed") from exc

    async def json(self, schema: type[Body]) -> Body:
        """A JSON body as ``schema``; an empty one counts as `{}`.

        Raises:
            UnsupportedMedia: another content type.
            InvalidContent, MalformedRequest: not what the schema says.
        """
        self.refuse_query()
        kind, _ = self.content_type()
        body = await self.body() if kind in ("", "application/json") else b""  # of another type, not even read
        if kind != "application/json" and (kind or body):
            raise UnsupportedMedia(f"Content-Type: expected application/json, not {kind or 'none'}")
        return await self.parse_json(body, schema)

    async def parse_json(self, body: bytes, schema: type[Body]) -> Body:
        """``body`` as ``schema``, parsed aside when it is large."""
        job = partial(_parse, body, schema)
        return await self.aside(job, large=len(body) > _ASIDE)

    def refuse_query(self) -> None:
        """Raise `InvalidContent` for query parameters where the options belong in the body."""
        for name in self.request.query_params:
            raise InvalidContent.field(name[:200], "unknown query parameter; options belong in the body")

    def model(self, name: str | None) -> LoadedModel:
        """The model asked for; also noted for the metrics.

        Raises:
            UnknownModel: there is none of that name.
        """
        loaded = self.services.repository.resolve(name)
        self.request.state.model = loaded.ref
        return loaded

    async def aside(self, job: Callable[[], T], *, large: bool) -> T:
        """Run a decoding job in the codec pool if it is large, else on the event loop; its time counts as decoding."""
        return await self._codec("decode", job, large=large)

    async def encode(self, job: Callable[[], T], *, large: bool) -> T:
        """Run an encoding job in the codec pool if it is large, else on the event loop; its time counts as encoding."""
        return await self._codec("encode", job, large=large)

    async def _codec(self, part: str, job: Callable[[], T], *, large: bool) -> T:
        if not large:
            small = partial(self._timed, part, job)
            alone = self.services.traffic.in_flight <= 1
            return small() if alone else await self.services.together.run(small)
        start = time.perf_counter()
        try:
            async with self.in_time():
                return await self.services.codec.run(part, job)
        finally:
            self.seconds[part] += time.perf_counter() - start

    def _timed(self, part: str, job: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return job()
        finally:
            seconds = time.perf_counter() - start
            self.seconds[part] += seconds
            self.services.metrics.codec(part, seconds)  # what the pool runs, it counts itself

    def count_rows(self, model: LoadedModel, result: Result) -> None:
        """Note a finished request's time, and its rows in the metrics."""
        self.seconds["queue"] += result.queue_s
        self.seconds["compute"] += result.compute_s
        drifts = () if result.drift is None else result.drift.tolist()
        self.services.metrics.rows(
            model.ref, self.request.scope["route"].path, result.steps.tolist(), result.distance.tolist(), drifts
        )

    def response_headers(self, model: LoadedModel, seed: int | None) -> dict[str, str]:
        """Headers of every successful answer."""
        headers = {
            "X-IGN-Model": f"{model.ref}@{model.digest[:12]}",
            "Server-Timing": ", ".join(f"{part};dur={seconds * 1e3:.1f}" for part, seconds in self.seconds.items()),
            "Vary": "Accept",
        }
        if seed is not None:
            headers["X-IGN-Seed"] = str(seed)
        return headers

    def timing(self) -> dict[str, float]:
        """The `timing` member of a JSON answer, in milliseconds."""
        return {f"{part}_ms": round(seconds * 1e3, 3) for part, seconds in self.seconds.items()}

    def _deadline(self) -> float:
        longest = self.services.settings.request_timeout_s
        text = self.headers.get("x-request-timeout")
        if text is None:
            return self.arrival + longest
        seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
        if not seconds > 0:
            raise MalformedRequest("X-Request-Timeout: must be decimal seconds above 0")
        return self.arrival + min(seconds, longest)


def _parse(body: bytes, schema: type[Body]) -> Body:
    try:
        return schema.model_validate(parse_json(body) if body else {})
    except ValidationError as exc:  # described here, aside if need be: a large body can hold 100 000 mistakes
        found = describe(exc)
        raise InvalidContent(found.detail, fields=found.fields) from exc
