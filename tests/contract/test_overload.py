"""What a rejection costs, and when a rejected connection is read again."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from service.api.fast_path import FastPath
from service.api.middleware.fast_routes import FastRouter
from service.server.fast_request import FastRequest
from service.server.rejected_connections import RejectedConnections

from tests.contract.harness import PATIENCE_S, Gate, Service, gated, serving, settings
from tests.contract.test_pressure import later
from tests.helpers.connection import Connection

Patch = pytest.MonkeyPatch
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
RECORDED = {"n": 4, "record": [1]}  # no small request: the fast path does not answer it
ROWS = 4


def post(body: dict[str, Any], header: str = "Accept: application/json") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{header}\r\n"
    return b"%sContent-Length: %d\r\n\r\n%s" % (head.encode(), len(content), content)


class Waiting(RejectedConnections):
    """Makes every rejected connection wait until `release`; any thread may call that."""

    def __init__(self) -> None:
        super().__init__()
        self.is_active = False  # while models load, probes get 503
        self.held: list[Callable[[], object]] = []

    def on_response(self, status: int, now: float) -> bool:
        return self.is_active and status in (429, 503)

    def wait(self, read_on: Callable[[], None], loop: Any) -> None:
        self.held.append(lambda: loop.call_soon_threadsafe(read_on))

    def release(self) -> None:
        for read_on in self.held:
            read_on()
        self.held.clear()


@contextmanager
def full_queue(models: Path, monkeypatch: Patch, **options: int) -> Iterator[tuple[Service, Gate]]:
    """A service whose queue has no room."""
    small = settings(models, queue_rows=ROWS, max_images=ROWS, max_batch_rows=1, **options)
    with gated(monkeypatch, small) as (service, gate), ThreadPoolExecutor(2) as pool:
        with gate:
            running = later(service, pool, {"seed": 1})
            assert gate.entered.wait(PATIENCE_S)
            waiting = later(service, pool, {"seed": 1, "n": ROWS})
            service.until_metric("ign_queue_rows", float(ROWS), model="grey/10")
            yield service, gate
        assert running().status_code == waiting().status_code == 200


@pytest.fixture
def waiting(monkeypatch: Patch) -> Waiting:
    rejected = Waiting()
    monkeypatch.setattr("service.server.open_connections.RejectedConnections", lambda: rejected)
    return rejected


@pytest.fixture
def routed(monkeypatch: Patch) -> list[str]:
    """The paths of requests that reach the application."""
    paths: list[str] = []
    call = FastRouter.__call__

    async def note(self: FastRouter, scope: Any, receive: Any, send: Any) -> None:
        paths.append(scope.get("path", ""))
        await call(self, scope, receive, send)

    monkeypatch.setattr(FastRouter, "__call__", note)
    return paths


@pytest.mark.parametrize(
    ("asked", "status", "limit"),
    [
        (post({}), 503, 2),  # without a parser
        (post({}, "X-Request-ID: mine"), 503, 2),
        (post({}), 429, 9),  # on the fast path, a small request and a larger one
        (post(RECORDED), 429, 9),
        (post({}, "Unknown: x"), 429, 9),  # by the application
    ],
)
def test_every_rejected_connection_waits_for_its_turn(
    models: Path, monkeypatch: Patch, waiting: Waiting, asked: bytes, status: int, limit: int
) -> None:
    with (
        full_queue(models, monkeypatch, max_inflight_requests=limit) as (service, _),
        Connection(service.address) as connection,
        Connection(service.address) as other,
    ):
        waiting.is_active = True
        assert connection.send(asked).answer()[0] == status
        connection.send(asked)
        for _ in range(3):
            assert other.send(HEALTH).answer()[0] == 200
        assert len(waiting.held) == 1  # the second request has not been read
        waiting.release()
        assert connection.answer()[0] == status
        service.until(lambda: len(waiting.held) == 1)
        waiting.release()


def test_other_connections_do_not_wait(models: Path, waiting: Waiting) -> None:
    with serving(settings(models)) as service, Connection(service.address) as connection:
        waiting.is_active = True
        for asked, status in ((post({}), 200), (post({"n": 0}), 422), (post({}, "Unknown: x"), 200)):
            assert connection.send(asked).answer()[0] == status
            assert waiting.held == []


def test_no_room_for_many_rows_costs_no_more_than_for_one(models: Path, monkeypatch: Patch, routed: list[str]) -> None:
    with full_queue(models, monkeypatch) as (service, _), Connection(service.address) as connection:
        before = service.metric("ign_rejected_requests_total", reason="queue_full")
        for _ in range(3):
            status, headers, body = connection.send(post(RECORDED)).answer()
            assert status == 429
            assert json.loads(body)["code"] == "queue_full"
            assert 1 <= int(headers["retry-after"]) <= 60
        assert "/generate" not in routed
        assert service.metric("ign_rejected_requests_total", reason="queue_full") == before + 3
        assert service.metric("ign_http_errors_total", code="queue_full") == before + 3


def test_only_requests_that_have_room_reach_the_application(
    models: Path, monkeypatch: Patch, routed: list[str]
) -> None:
    """Six requests arrive in one turn of the event loop, and there is room for one."""
    arrived: list[FastRequest] = []
    add = FastPath.add

    def add_together(self: FastPath, request: FastRequest) -> None:
        arrived.append(request)
        for one in arrived if len(arrived) == len(connections) else ():
            add(self, one)

    monkeypatch.setattr(FastPath, "add", add_together)
    with serving(settings(models, queue_rows=ROWS, max_images=ROWS)) as service:
        connections = [Connection(service.address) for _ in range(6)]
        for connection in connections:
            connection.send(post(RECORDED))
        assert sorted(connection.answer()[0] for connection in connections) == [200, *[429] * 5]
        assert routed.count("/generate") == 1
        for connection in connections:
            connection.close()
