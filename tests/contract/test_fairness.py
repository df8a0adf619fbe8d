"""One caller takes all that it may; another one is served."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.api import limits
from tests.contract.data import PICTURE
from tests.contract.harness import PATIENCE_S, Service, held, later, problem, serving, settings
from tests.helpers.connection import Connection

Patch = pytest.MonkeyPatch
JSON = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"


@contextmanager
def newcomer(service: Service) -> Iterator[httpx.Client]:
    """A client with another address."""
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=service.url, timeout=PATIENCE_S, transport=transport) as client:
        yield client


def test_a_full_queue_has_room_for_another_caller(models: Path, monkeypatch: Patch) -> None:
    chosen = {"queue_rows": 8, "max_images": 4, "max_batch_rows": 1}
    with held(monkeypatch, settings(models, **chosen)) as (service, gate), ThreadPoolExecutor(3) as pool:
        waiting = [later(service, pool, {"n": 4}) for _ in range(2)]
        service.until_metric("ign_queue_rows", 8.0, model="grey/10")
        problem(service.post("/generate", {}), 429, "queue_full")
        with newcomer(service) as client:
            other = pool.submit(client.post, "/generate", json={"n": 4})
            service.until_metric("ign_queue_rows", 12.0, model="grey/10")
            response = service.post("/generate", {})
            assert "1 other caller" in response.json()["detail"]
            gate.opened.set()
            assert other.result().status_code == 200
        assert [one().status_code for one in waiting] == [200, 200]


def test_all_requests_in_flight_leave_room_for_another_caller(models: Path, monkeypatch: Patch) -> None:
    with held(monkeypatch, settings(models, max_inflight_requests=1)) as (service, gate):
        problem(service.post("/generate", {}), 429, "over_share")
        with newcomer(service) as client, ThreadPoolExecutor(1) as pool:
            other = pool.submit(client.post, "/generate", json={})
            service.until_in_flight(2)
            gate.opened.set()
            assert other.result().status_code == 200


def test_bytes_that_one_caller_sends_leave_room_for_another(models: Path) -> None:
    chosen = {"max_body_bytes": 60_000, "max_inflight_bytes": 60_000}
    head = b"POST /project HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 60000\r\n\r\n"
    with serving(settings(models, **chosen)) as service, Connection(service.address).send(head + bytes(59_000)):
        service.until_bytes(lambda size: size > 50_000)
        content = PICTURE.ljust(40_000, b"\0")
        kind = {"Content-Type": "image/png"}
        problem(service.client.post("/project", content=content, headers=kind), 429, "over_share")
        with newcomer(service) as client:
            assert client.post("/project", content=PICTURE, headers=kind).status_code == 200
            assert client.post("/project", content=content, headers=kind).status_code in (200, 422)


@pytest.mark.parametrize(
    "body",
    [
        b'{"n":4,"steps":16,"record":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16],"format":"npy"}',
        b'{"n":4,"scale":16}',
    ],
)
def test_a_response_counts_before_a_row_runs(models: Path, monkeypatch: Patch, body: bytes) -> None:
    """So that nobody makes the service hold what is many times as long as the request."""
    chosen = {"max_body_bytes": 60_000, "max_inflight_bytes": 60_000}
    with held(monkeypatch, settings(models, **chosen)) as (service, gate):
        with Connection(service.address).send(JSON % (len(body), body)) as first:
            service.until_bytes(lambda size: size > 30_000)
            kind = {"Content-Type": "application/json"}
            problem(service.client.post("/generate", content=body, headers=kind), 429, "over_share")
            gate.opened.set()
            assert first.answer()[0] == 200
        service.until_bytes(lambda size: size == 0)


def test_a_stream_that_cannot_end_in_time_is_rejected_at_once(models: Path, monkeypatch: Patch) -> None:
    with held(monkeypatch, settings(models, stream_timeout_s=60.0)) as (service, gate):
        gate.pass_s = 0.01
        gate.opened.set()
        for _ in range(16):  # enough model calls to predict
            assert service.post("/generate", {"steps": 1}).status_code == 200
        response = service.post("/generate", {"steps": 300_000}, accept="text/event-stream")
        problem(response, 504, "deadline_unreachable")
        assert service.post("/generate", {"steps": 3}, accept="text/event-stream").status_code == 200


def test_new_connections_wait_behind_errors_of_their_caller(models: Path, monkeypatch: Patch) -> None:
    """Else a client that comes back on a new connection after every error would take the time of others."""
    good, wrong = (f"GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in ("models", "nothing"))
    with serving(settings(models)) as service:
        monkeypatch.setattr(limits, "CREDITS_OF_SECOND", 0.0)
        monkeypatch.setattr(limits, "_MAX_CREDIT", 2.0)
        for _ in range(3):
            with Connection(service.address).send(wrong) as leaving:
                assert leaving.answer()[0] == 404
        with Connection(service.address).send(good) as waiting:
            waiting.socket.settimeout(0.2)
            with pytest.raises(TimeoutError):
                waiting.socket.recv(1)
            waiting.socket.settimeout(PATIENCE_S)
            with newcomer(service) as client:
                assert client.get("/models").status_code == 200  # which allows more errors
            assert waiting.answer()[0] == 200


LONG_ERROR = JSON % (4096, b'{"unknown":"'.ljust(4094, b"a") + b'"}')


@pytest.mark.parametrize(
    ("request_", "credit"), [(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 1.0), (LONG_ERROR, 8.0)]
)
def test_what_takes_time_waits_longer(models: Path, monkeypatch: Patch, request_: bytes, credit: float) -> None:
    """A scrape is long, and so is the body of an error, which was parsed."""
    with serving(settings(models)) as service, Connection(service.address) as connection:
        monkeypatch.setattr(limits, "CREDITS_OF_SECOND", 0.0)
        monkeypatch.setattr(limits, "_MAX_CREDIT", credit)
        for _ in range(2):
            connection.send(request_).answer()
        connection.send(request_).socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.socket.recv(1)
        connection.socket.settimeout(PATIENCE_S)
        with newcomer(service) as client:
            for _ in range(4):
                assert client.get("/models").status_code == 200
        connection.answer()


def test_a_head_has_little_that_can_be_long(service: Service) -> None:
    kind = "multipart/form-data" + ";" * 300 + "boundary=a"
    problem(service.client.post("/project", content=b"", headers={"Content-Type": kind}), 415, "unsupported_media_type")
    problem(service.client.post(f"/project?{'a=1&' * 1100}", content=b""), 431, "head_too_large")
