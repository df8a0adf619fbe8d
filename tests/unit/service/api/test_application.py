import asyncio
import json
import logging
import queue
import re
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from service.api.access import ApiKey, Network
from service.api.cors import EXPOSED_HEADERS
from service.api.limits import InFlightRequests
from service.api.pipeline import DisconnectSweep, watch
from service.api.request import read_body
from service.domain.errors import HeadTooLarge, ModelFailure, UnknownModel
from service.observability.logs import JsonFormatter
from tests.helpers.application import application

ORIGIN = {"Origin": "https://app.example"}


class Service:
    """A small application in place of the models and FastAPI's routes, and what the test wants to know of it."""

    def __init__(
        self,
        *,
        limit: int = 100,
        body_seconds: float = 5.0,
        keys: list[ApiKey] | None = None,
        trusted_proxies: tuple[Network, ...] = (),
    ) -> None:
        self.in_flight = InFlightRequests()
        self.observed: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self._body_seconds = body_seconds
        self._watch = DisconnectSweep()
        api = FastAPI(docs_url=None, redoc_url=None, redirect_slashes=False)
        for path, endpoint in {
            "/state/{name}": self.state,
            "/missing": self.missing,
            "/crash": self.crash,
            "/crash-late": self.crash_late,
            "/broken-model": self.broken_model,
            "/body": self.body,
            "/work": self.work,
            "/healthz": self.health,
        }.items():
            api.add_api_route(path, endpoint, methods=["GET", "POST"])
        self.app = application(
            api,
            keys=keys,
            in_flight=self.in_flight,
            observe=self._observe,
            max_inflight_requests=limit,
            trusted_proxies=trusted_proxies,
            cors_origins=("https://app.example",),
        )

    def _observe(self, endpoint: str, status: int, ended: list[tuple[float, Any]]) -> None:
        for seconds, _ in ended:
            self.observed.put((endpoint, status, seconds))

    async def state(self, request: Request) -> Response:
        state = request.state
        age = time.monotonic() - state.arrival
        return JSONResponse({"id": state.request_id, "caller": state.caller, "age": age})

    async def missing(self, _: Request) -> Response:
        raise UnknownModel("there is no model x")

    async def crash(self, _: Request) -> Response:
        raise RuntimeError("secret")

    async def crash_late(self, _: Request) -> Response:
        async def content() -> AsyncIterator[bytes]:
            yield b"begin"
            raise RuntimeError("secret")

        return StreamingResponse(content())

    async def broken_model(self, _: Request) -> Response:
        raise ModelFailure("the model gave values that are not finite")

    async def body(self, request: Request) -> Response:
        self.started.set()
        deadline = request.state.arrival + self._body_seconds
        body = await read_body(request.headers, request.receive, max_bytes=1000, deadline=deadline)
        return JSONResponse({"length": len(body)})

    async def work(self, request: Request) -> Response:
        async def never() -> None:
            self.started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()

        await read_body(request.headers, request.receive, max_bytes=1000, deadline=time.monotonic() + 5)
        with watch(self._watch, request.receive):
            await never()
        return Response()

    async def health(self, _: Request) -> Response:
        return JSONResponse({"in_flight": self.in_flight.count})

    def call(self, method: str, path: str, *, peer: str = "192.0.2.1", **kwargs: Any) -> httpx.Response:
        async def main() -> httpx.Response:
            async with self.client(peer) as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(main())

    def client(self, peer: str = "192.0.2.1") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, client=(peer, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://service")

    @contextmanager
    def serve(self) -> Iterator[tuple[str, int]]:
        config = uvicorn.Config(
            self.app, log_config=None, access_log=False, lifespan="on", ws="none", proxy_headers=False
        )
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                yield listener.getsockname()
            finally:
                server.should_exit = True
                thread.join(10)
                assert not thread.is_alive()


# Request context


@pytest.mark.parametrize("given", ["a", "A.b_c-9", "x" * 128])
def test_a_valid_request_id_is_echoed(given: str) -> None:
    response = Service().call("GET", "/state/x", headers={"X-Request-ID": given})
    assert response.headers["x-request-id"] == response.json()["id"] == given


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, "ü", "a\tb", "{}"])
def test_otherwise_one_is_minted(given: str | None) -> None:
    headers = [] if given is None else [("X-Request-ID", given.encode())]
    response = Service().call("GET", "/state/x", headers=headers)
    minted = response.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", minted)
    assert response.json()["id"] == minted


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/missing", 404),
        ("PUT", "/missing", 405),
        ("GET", "/crash", 500),
        ("GET", "/broken-model", 500),
    ],
)
def test_every_error_carries_the_request_id(method: str, path: str, status: int) -> None:
    response = Service().call(method, path, headers={"X-Request-ID": "r-7"})
    assert response.status_code == status
    assert response.headers["x-request-id"] == "r-7"
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == "r-7"
    assert "secret" not in response.text


def test_arrival_and_caller() -> None:
    service = Service(trusted_proxies=(ip_network("10.0.0.0/8"),))
    forwarded = {"X-Forwarded-For": "198.51.100.9"}
    direct = service.call("GET", "/state/x", headers=forwarded).json()
    assert direct["caller"] == "192.0.2.1"
    assert 0 <= direct["age"] < 5
    assert service.call("GET", "/state/x", peer="10.1.1.1", headers=forwarded).json()["caller"] == "198.51.100.9"


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/state/alice", "/state/{name}", 200),
        ("PUT", "/state/alice", "/state/{name}", 405),
        ("GET", "/no/such/path", "unmatched", 404),
        ("GET", "/crash", "/crash", 500),
    ],
)
def test_log_line_and_metrics_name_the_template(
    caplog: pytest.LogCaptureFixture, method: str, path: str, route: str, status: int
) -> None:
    service = Service()
    with caplog.at_level(logging.INFO, "service.access"):
        service.call(method, path, headers={"X-Request-ID": "r-7", "Authorization": "Bearer hush"}, content=b"private")
    seen = service.observed.get_nowait()
    assert seen[:2] == (route, status)
    assert 0 <= seen[2] < 5
    assert service.observed.empty()
    (record,) = [record for record in caplog.records if record.name == "service.access"]
    line = record.getMessage()
    assert re.fullmatch(rf"r-7 {method} {re.escape(route)} {status} \d+\.\d ms", line)
    parsed = json.loads(JsonFormatter().format(record))
    assert parsed.items() >= {"request_id": "r-7", "method": method, "route": route, "status": status}.items()
    assert parsed["message"] == line
    assert parsed["ms"] >= 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", parsed["time"])
    assert "hush" not in caplog.text
    assert "private" not in caplog.text


def test_json_log_keeps_tracebacks_on_one_line() -> None:
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        record = logging.LogRecord("x", logging.ERROR, "f.py", 1, "failed: %s", ("it",), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert json.loads(text)["message"] == "failed: it"
    assert "two\nlines" in json.loads(text)["exception"]
    assert "request_id" not in json.loads(text)


def test_unforeseen_error_is_logged_once_under_its_id(caplog: pytest.LogCaptureFixture) -> None:
    Service().call("GET", "/crash", headers={"X-Request-ID": "r-7"})
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "r-7" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)


# CORS


def test_errors_too_carry_the_cors_headers() -> None:
    service = Service()
    for path in ("/state/x", "/nowhere", "/crash"):
        response = service.call("GET", path, headers=ORIGIN)
        assert response.headers["access-control-allow-origin"] == ORIGIN["Origin"]
        assert response.headers["access-control-expose-headers"] == ", ".join(EXPOSED_HEADERS)
    assert "access-control-allow-origin" not in service.call("GET", "/state/x", headers={"Origin": "https://x"}).headers


def test_preflight_needs_no_key_and_is_refused_with_a_problem() -> None:
    service = Service(keys=[])
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-request-timeout"}
    allowed = service.call("OPTIONS", "/body", headers=ORIGIN | ask)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN["Origin"]
    refused = service.call("OPTIONS", "/body", headers={"Origin": "https://evil.example"} | ask)
    assert refused.status_code == 400
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["request_id"] == refused.headers["x-request-id"] != ""
    assert service.call("OPTIONS", "/body").status_code == 401  # no preflight at all


# Gate


def test_draining_refuses_all_but_health() -> None:
    service = Service()
    service.in_flight.draining = True
    response = service.call("GET", "/state/x")
    assert response.status_code == 503
    assert response.json()["code"] == "draining"
    assert response.headers["retry-after"] == "1"
    assert service.call("GET", "/healthz").status_code == 200


def test_requests_beyond_the_limit_are_refused_and_the_gate_reopens() -> None:
    service = Service(limit=1)

    async def main() -> None:
        async with service.client() as client:
            await asyncio.wait_for(service.in_flight.idle(), 5)
            busy = asyncio.create_task(client.post("/work"))
            assert await asyncio.to_thread(service.started.wait, 5)
            refused = await client.get("/state/x")
            assert refused.status_code == 503
            assert refused.json()["code"] == "too_many_connections"
            assert int(refused.headers["retry-after"]) >= 1
            assert (await client.get("/healthz")).json() == {"in_flight": 1}
            idle = asyncio.create_task(service.in_flight.idle())
            await asyncio.sleep(0)
            assert not idle.done()
            busy.cancel()
            await asyncio.wait_for(idle, 5)
            assert (await client.get("/state/x")).status_code == 200
            assert (await client.get("/crash")).status_code == 500
            assert service.in_flight.count == 0

    asyncio.run(main())


def test_a_head_that_the_server_rejects_is_answered_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    service, sent = Service(), list[Any]()

    async def main() -> None:
        state = {"rejected": HeadTooLarge("too large")}
        scope = {"type": "http", "method": "-", "path": "", "http_version": "1.1", "headers": [], "state": state}

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await service.app({**scope, "query_string": b""}, receive, send)
        await asyncio.sleep(0)

    with caplog.at_level(logging.INFO, "service.access"):
        asyncio.run(main())
    assert sent[0]["status"] == 431
    assert json.loads(sent[1]["body"])["code"] == "head_too_large"
    assert service.observed.get_nowait()[:2] == ("unmatched", 431)
    assert " - unmatched 431 " in caplog.text


# Real sockets


def request_head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


def test_slow_body_is_answered_408_and_the_connection_closed() -> None:
    service = Service(body_seconds=0.1)
    with service.serve() as address, socket.create_connection(address, timeout=10) as connection:
        connection.sendall(request_head("/body", 10) + b"123")
        answer = read_to_end(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["code"] == "body_too_slow"
    assert service.observed.get(timeout=5)[:2] == ("/body", 408)


def test_large_bodies_are_answered_413_chunked_or_not() -> None:
    service = Service()
    with service.serve() as (host, port), httpx.Client(base_url=f"http://{host}:{port}", trust_env=False) as client:
        for content in (b"x" * 1001, iter([b"x" * 600, b"x" * 600])):
            response = client.post("/body", content=content)
            assert response.status_code == 413
            assert response.json()["code"] == "too_large"
        assert client.post("/body", content=b"x" * 1000).json() == {"length": 1000}


@pytest.mark.parametrize("path", ["/work", "/body"])
def test_client_gone_is_499_quietly(caplog: pytest.LogCaptureFixture, path: str) -> None:
    service = Service()
    with service.serve() as address:
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(request_head(path, 4 if path == "/work" else 10) + b"1234")
            assert service.started.wait(10)
        assert service.observed.get(timeout=10)[:2] == (path, 499)
        assert service.cancelled.is_set() == (path == "/work")
    assert service.in_flight.count == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_failure_under_way_cuts_the_answer_and_counts_as_500(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    with service.serve() as (host, port), httpx.Client(base_url=f"http://{host}:{port}", trust_env=False) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("/crash-late")
        assert service.observed.get(timeout=5)[:2] == ("/crash-late", 500)
    assert sum(record.exc_info is not None for record in caplog.records) == 1


# Traffic


def test_wait_for_current_waits_for_earlier_requests_only() -> None:
    async def main() -> None:
        in_flight = InFlightRequests()
        await asyncio.wait_for(in_flight.wait_for_current(), 5)
        first = in_flight.enter()
        one = asyncio.create_task(in_flight.wait_for_current())
        await asyncio.sleep(0)
        second = in_flight.enter()
        two = asyncio.create_task(in_flight.wait_for_current())
        await asyncio.sleep(0)
        third = in_flight.enter()
        in_flight.leave(second)
        await asyncio.sleep(0)
        assert not one.done()
        assert not two.done()  # the first was there before it, too
        in_flight.leave(first)
        await asyncio.wait_for(asyncio.gather(one, two), 5)
        assert in_flight.count == 1
        three = asyncio.create_task(in_flight.wait_for_current())
        await asyncio.sleep(0)
        assert not three.done()
        in_flight.leave(third)
        await asyncio.wait_for(three, 5)

    asyncio.run(main())
