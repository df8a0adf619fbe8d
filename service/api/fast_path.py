"""Answers small requests without a task: each stage runs for all requests of one turn of the event loop.

Parse, check, decode and submit; after the model calls encode, write and record. A stage that runs for many requests in
a row finds its code and data in the CPU's cache, so a request costs half of what it costs as an ASGI request.

Only plain requests come here. `FastPath.recognise` looks at the head, and the first stage at the options. It changes
nothing that outlasts the request, so a request that it cannot parse, or that is not small, is replayed as an ASGI
request with the body that is there. So is one that the limits or the keys refuse. A request for whose rows the queue
has no room is not replayed: a rejection here costs a fraction. From `_count` on a request stays here, and its errors
become the same problem documents as those of ASGI requests.

Both ways call the same functions: those of `service.api.middleware` and the stages of the endpoints.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, TypeVar

from service.api.app_state import AppState
from service.api.http.body import MIN_HELD
from service.api.http.problems import describe, problem_response
from service.api.http.request_context import ApiRequest
from service.api.middleware.access_log import CLIENT_GONE
from service.api.middleware.auth import ApiKey, identify
from service.api.middleware.client_address import address_key, peer_key
from service.api.middleware.in_flight import Epoch
from service.api.middleware.rate_limit import CallerRates
from service.api.plain_request import PLAIN_NAMES, FastEndpoint, Head, PlainRequest, Stages, Work, is_small, plain_head
from service.domain.errors import Draining, IgnError
from service.domain.tasks import Result
from service.models.registry import ServedModel
from service.observability.logs import choose_request_id, log_request

MAX_BODY_BYTES: Final = 1 << 14
MAX_PER_TURN: Final = 32
"""Requests of one turn of the event loop: about 2 ms of work."""
_MAX_BYTES_PER_TURN: Final = 1 << 16  # of their bodies; a body of 16 KiB takes as long as forty of 400 bytes
_PATHS, _MAX_PATH = 1024, 256  # how many are remembered, and the longest of them

Item = TypeVar("Item")
Key = TypeVar("Key")


@dataclass(slots=True, eq=False)
class Call:
    """A plain request on its way through the stages."""

    request: PlainRequest
    state: dict[str, Any]
    work: Work
    refusal: IgnError | None = None  # of the scheduler
    epoch: Epoch | None = None
    inputs: Any = None
    handle: Any = None  # of the scheduler


class FastPath:
    """Runs the stages of plain requests. Belongs to one event loop.

    Args:
        services: the running parts of the service.
        endpoints: those for which a request can be plain.
        keys: API keys; None where none are needed.
        rates: counts the requests of each caller; None for no limit.
    """

    def __init__(
        self,
        services: AppState,
        endpoints: Iterable[FastEndpoint],
        *,
        keys: Sequence[ApiKey] | None = None,
        rates: CallerRates | None = None,
    ) -> None:
        self._services, self._in_flight, self._settings = services, services.in_flight, services.settings
        self._keys, self._rates = keys, rates
        self._endpoints = tuple(endpoints)
        self._find = lru_cache(maxsize=_PATHS)(self._find_endpoint)
        self._vary = bool(self._settings.cors_origins)  # `CorsMiddleware` adds Origin to Vary if the request has none
        self._names = PLAIN_NAMES if self._vary else PLAIN_NAMES | {b"origin"}
        self._max_body = min(MAX_BODY_BYTES, self._settings.max_body_bytes)
        self._arrived: list[PlainRequest] = []
        self._running: dict[Any, Call] = {}
        self._recorded: dict[tuple[str, int, str | None], list[tuple[float, dict[str, Any]]]] = {}

    def recognise(self, method: bytes, target: bytes, fields: Sequence[tuple[bytes, bytes]]) -> Head | None:
        """The head of a plain request; None for any other one."""
        services = self._services
        path, _, query = target.partition(b"?")
        found = self._find(path) if method == b"POST" and len(path) <= _MAX_PATH else None
        if found is None or services.phase != "serving" or self._in_flight.draining or services.tracing is not None:
            return None
        return plain_head(found, path, query, fields, names=self._names, max_body=self._max_body)

    def add(self, request: PlainRequest) -> None:
        """Answer or replay a request whose body has arrived, in this turn of the event loop or a later one."""
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._run)
        self._arrived.append(request)
        self._in_flight.arriving += 1

    def cancel(self, request: PlainRequest) -> None:
        """The client has gone."""
        call = request.call
        if call is not None and self._running.pop(call.handle, None) is not None:
            call.work.model.scheduler.cancel(call.handle)
            self._record(call, CLIENT_GONE, 0)
            self._observe()
            request.answer(CLIENT_GONE, b"", b"")  # which the client does not get

    def _find_endpoint(self, path: bytes) -> tuple[FastEndpoint, Mapping[str, str]] | None:
        text = path.decode("latin-1")
        for endpoint in self._endpoints if path.isascii() and b"%" not in path else ():
            match = endpoint.match(text)
            if match is not None:
                return endpoint, match.groupdict()
        return None

    def _run(self) -> None:
        """The stages up to the scheduler, for the requests of this turn."""
        requests = self._take()
        passed_on: dict[ServedModel, int] = {}
        calls = [call for request in requests if (call := self._parse(request, passed_on)) is not None]
        calls = [call for call in calls if self._count(call) and not self._refuse(call)]
        for stages, group in _grouped(calls, lambda call: call.request.head.endpoint.stages):
            self._decode(stages, group)
        ready = [call for call in calls if call.inputs is not None]
        for model, group in _grouped(ready, lambda call: call.work.model):
            self._submit(model, group)
        self._observe()

    def _take(self) -> list[PlainRequest]:
        arrived, size, count = self._arrived, 0, 0
        while count < min(len(arrived), MAX_PER_TURN) and size < _MAX_BYTES_PER_TURN:
            size += len(arrived[count].body)
            count += 1
        self._arrived = arrived[count:]
        self._in_flight.arriving -= count
        if self._arrived:
            asyncio.get_running_loop().call_soon(self._run)
        return arrived[:count]

    def _parse(self, request: PlainRequest, passed_on: dict[ServedModel, int]) -> Call | None:
        """The call of a request; None if it is replayed.

        Args:
            request: to parse.
            passed_on: rows of the requests of this turn that are replayed and will find the room that there is.
        """
        head = request.head
        proxies = self._settings.trusted_proxies
        state: dict[str, Any] = {
            "request_id": choose_request_id(head.get("x-request-id")),
            "arrival": request.arrival,
            "peer": request.peer,
            "caller": peer_key(request.peer, head.getlist("x-forwarded-for"), proxies)
            if proxies
            else address_key(request.peer),
            "request_bytes": len(request.body),
        }
        work = refusal = None
        if not request.disconnected:
            with contextlib.suppress(Exception):  # the ASGI request has the same error, and answers it
                api = ApiRequest(self._services, head.endpoint.template, head.query, head, state)
                work = head.endpoint.parse(api, request.body, head.parameters)
        if work is not None and not is_small(work):
            rows = passed_on.get(work.model, 0) + work.count
            refusal = work.model.scheduler.refusal(rows)
            if refusal is None:
                passed_on[work.model] = rows
        if work is None or not (is_small(work) or refusal):
            request.replay()
            return None
        call = request.call = Call(request, state, work, refusal)
        return call

    def _count(self, call: Call) -> bool:
        """Apply the limits of `service.api.middleware`; a request that one of them refuses is replayed."""
        request, in_flight = call.request, self._in_flight
        try:
            full = in_flight.count >= self._settings.max_inflight_requests
            if in_flight.draining or full or call.work.api.deadline <= time.monotonic():
                raise Draining("passed on")
            if self._keys is not None:
                identify(request.head, self._keys, call.state)
                call.work.api.caller = call.state["caller"]
            if len(request.body) > MIN_HELD:
                in_flight.hold(call.state, len(request.body))
            if self._rates is not None:
                self._rates.count(call.state)
        except IgnError:
            in_flight.release(call.state)
            request.call = None
            request.replay()
            return False
        call.epoch = in_flight.enter()
        call.state["rows"], call.state["steps"] = call.work.count, call.work.steps
        return True

    def _refuse(self, call: Call) -> bool:
        """Answer a request for whose rows there is no room; returns whether it is one."""
        if call.refusal is None:
            return False
        call.work.model.scheduler.count_refusal(call.refusal)
        self._fail(call, call.work.error(call.refusal))
        return True

    def _decode(self, stages: Stages, calls: list[Call]) -> None:
        try:
            decoded = stages.decode([call.work for call in calls])
        except Exception as exc:
            decoded = [exc] * len(calls)
        for call, inputs in zip(calls, decoded, strict=True):
            if isinstance(inputs, Exception):
                self._fail(call, inputs)
            else:
                call.inputs = inputs

    def _submit(self, model: ServedModel, calls: list[Call]) -> None:
        try:
            requests = [(call.inputs.rows, call.work.scheduling(call.inputs)) for call in calls]
            handles = model.scheduler.begin_many(requests, self._on_ended)
        except Exception as exc:
            handles = [exc] * len(calls)
        for call, handle in zip(calls, handles, strict=True):
            if isinstance(handle, IgnError):
                self._fail(call, call.work.error(handle))
            elif isinstance(handle, Exception):
                self._fail(call, handle)
            else:
                call.handle = handle
                self._running[handle] = call

    def _on_ended(self, ended: list[tuple[Any, Any]]) -> None:
        self._deliver([(self._running.pop(handle), outcome) for handle, outcome in ended])

    def _deliver(self, ended: list[tuple[Call, Result | IgnError]]) -> None:
        """The stages after the scheduler, for requests that ended together."""
        if len(ended) > MAX_PER_TURN:
            asyncio.get_running_loop().call_soon(self._deliver, ended[MAX_PER_TURN:])
        done: list[tuple[Call, Result]] = []
        for call, outcome in ended[:MAX_PER_TURN]:
            if isinstance(outcome, IgnError):
                self._fail(call, call.work.error(outcome))
            else:
                done.append((call, outcome))
        for stages, group in _grouped(done, lambda pair: pair[0].request.head.endpoint.stages):
            self._respond(stages, group)
        self._observe()

    def _respond(self, stages: Stages, done: list[tuple[Call, Result]]) -> None:
        try:
            responses = stages.respond([(call.work, call.inputs.rows, result) for call, result in done])
        except Exception as exc:
            if len(done) == 1:
                self._fail(done[0][0], exc)
            for pair in done if len(done) > 1 else ():  # such as a deadline: that of one request must not end others
                self._respond(stages, [pair])
            return
        for (call, _), (headers, body, media_type) in zip(done, responses, strict=True):
            if self._vary:
                headers["Vary"] += ", Origin"
            lines = "".join([f"{name.lower()}: {value}\r\n" for name, value in headers.items()])
            text = f"{lines}content-length: {len(body)}\r\ncontent-type: {media_type}\r\n"
            self._answer(call, HTTPStatus.OK, text.encode("latin-1"), body)

    def _fail(self, call: Call, exc: Exception) -> None:
        call.state["problem"] = describe(exc).code
        response = problem_response(exc, call.state["request_id"])
        lines = [*response.raw_headers, *([(b"vary", b"Origin")] if self._vary else [])]
        exc.__traceback__ = None  # its frames hold it: break the cycle
        headers = b"".join([b"%s: %s\r\n" % line for line in lines])
        close = response.headers.get("connection") == "close"
        self._answer(call, response.status_code, headers, bytes(response.body), close=close)

    def _answer(self, call: Call, status: int, headers: bytes, body: bytes, *, close: bool = False) -> None:
        request_id = call.state["request_id"].encode("ascii")
        call.request.answer(status, b"%sx-request-id: %s\r\n" % (headers, request_id), body, close=close)
        self._record(call, status, len(body))

    def _record(self, call: Call, status: int, body_bytes: int) -> None:
        state, endpoint = call.state, call.request.head.endpoint.template
        if call.epoch is not None:
            self._in_flight.leave(call.epoch, state.get("body_bytes", 0))
        state["response_bytes"] = body_bytes
        seconds = time.monotonic() - state["arrival"]
        log_request("POST", endpoint, status, seconds, state)
        self._recorded.setdefault((endpoint, status, state.get("model")), []).append((seconds, state))

    def _observe(self) -> None:
        """Count what has been recorded since the last call."""
        recorded, self._recorded = self._recorded, {}
        for (endpoint, status, _), ended in recorded.items():
            self._services.metrics.requests(endpoint, status, ended)


def _grouped(items: Sequence[Item], key: Callable[[Item], Key]) -> Iterable[tuple[Key, list[Item]]]:
    """The items by their key, in order."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups.items()
