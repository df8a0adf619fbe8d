"""Early rejection over real connections: the application does not see these requests."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.server.http_protocol import MAX_PIPELINED
from service.server.rejected_connections import MAX_CREDIT
from tests.contract.harness import PATIENCE_S, Service, gated, problem, settings
from tests.contract.test_pressure import later
from tests.helpers.connection import Connection

HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
ASKED = HEAD + b"\r\n{}"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@contextmanager
def full(models: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> Iterator[tuple[Service, Connection]]:
    """A service at its limit of one request in flight, and a second connection to it."""
    pressed = settings(models, max_inflight_requests=1, **options)
    with gated(monkeypatch, pressed) as (service, gate), ThreadPoolExecutor(1) as pool, gate:
        running = later(service, pool, {})
        assert gate.entered.wait(PATIENCE_S)
        connection = Connection(service.address)
        yield service, connection
        connection.close()
        gate.opened.set()
        assert running().status_code == 200


def refused(answer: tuple[int, dict[str, str], bytes]) -> dict[str, str]:
    status, headers, body = answer
    assert status == 503
    assert headers["content-type"] == "application/problem+json"
    assert headers["retry-after"] == "1"
    assert "date" in headers
    document = json.loads(body)
    assert document["code"] == "too_many_connections"
    assert document["request_id"] == headers["x-request-id"]
    return headers


def test_it_is_a_problem_like_all_others(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full(models, monkeypatch) as (service, _):
        response = service.post("/generate", {}, headers={"X-Request-ID": "mine", "traceparent": TRACEPARENT})
        problem(response, 503, "too_many_connections")
        assert response.headers["X-Request-ID"] == "mine"
        assert response.headers["traceparent"] == TRACEPARENT
        assert service.metric("ign_requests_total", status="5xx", endpoint="/generate") == 1
        assert service.metric("ign_http_errors_total", code="too_many_connections") == 1


def test_the_connection_serves_on(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full(models, monkeypatch) as (_, connection):
        for _ in range(3):
            refused(connection.send(ASKED).answer())
            assert connection.send(HEALTH).answer()[0] == 200


def test_a_body_that_comes_late_is_passed_over(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full(models, monkeypatch) as (_, connection):
        refused(connection.send(HEAD + b"\r\n").answer())
        assert connection.send(b"{}" + HEALTH).answer()[0] == 200


def test_a_late_body_that_looks_like_a_request_is_passed_over(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full(models, monkeypatch) as (service, connection):
        refused(connection.send(HEAD.replace(b": 2", b": %d" % len(ASKED)) + b"\r\n").answer())
        connection.send(ASKED)
        assert service.get("/healthz").status_code == 200  # so the body is read on its own
        assert connection.send(HEALTH).answer()[0] == 200


def test_a_request_in_two_parts(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full(models, monkeypatch) as (service, connection):
        connection.send(ASKED[:20])
        assert service.get("/healthz").status_code == 200
        refused(connection.send(ASKED[20:]).answer())
        refused(connection.send(ASKED).answer())


def test_many_at_once_on_one_connection(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full(models, monkeypatch) as (_, connection):
        connection.send(HEALTH + ASKED * 60 + HEALTH)
        assert connection.answer()[0] == 200
        for _ in range(60):
            refused(connection.answer())
        assert connection.answer()[0] == 200


def test_a_long_pipeline_of_them_is_closed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full(models, monkeypatch) as (_, connection):
        connection.send(ASKED * 5000)
        assert connection.stream.read().count(b"HTTP/1.1 503") <= MAX_CREDIT + 2 * MAX_PIPELINED


def test_a_length_of_thousands_of_digits_is_malformed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full(models, monkeypatch) as (_, connection):
        status, _, body = connection.send(HEAD.replace(b"2\r\n", b"9" * 4400 + b"\r\n") + b"\r\n{}").answer()
        assert (status, json.loads(body)["code"]) == (400, "malformed")


@pytest.mark.parametrize("head", [HEAD + b"Connection: close\r\n", HEAD.replace(b"1.1", b"1.0")])
def test_a_connection_that_is_to_end_ends(models: Path, monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    with full(models, monkeypatch) as (_, connection):
        headers = refused(connection.send(head + b"\r\n{}").answer())
        assert headers["connection"] == "close"
        assert connection.is_over()


def test_a_page_of_another_origin_may_see_it(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full(models, monkeypatch, cors_origins=("https://a.example",)) as (_, connection):
        headers = refused(connection.send(HEAD + b"Origin: https://a.example\r\n\r\n{}").answer())
        assert headers["access-control-allow-origin"] == "https://a.example"


def test_once_there_is_room_it_is_answered(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        gated(monkeypatch, settings(models, max_inflight_requests=1)) as (service, gate),
        ThreadPoolExecutor(1) as pool,
    ):
        connection = Connection(service.address)
        with gate:
            running = later(service, pool, {})
            assert gate.entered.wait(PATIENCE_S)
            refused(connection.send(ASKED).answer())
        assert running().status_code == 200
        assert connection.send(ASKED).answer()[0] == 200
        connection.close()
