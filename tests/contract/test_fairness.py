"""One caller takes all that it may; another one is served."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from service.api import request
from service.domain import accounts
from service.domain.accounts import Rate
from tests.contract.harness import (
    PATIENCE_S,
    Service,
    held,
    later,
    problem,
    send,
    serving,
    settings,
)
from tests.helpers.connection import Connection

Patch = pytest.MonkeyPatch
JSON = (
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    b"%d\r\n\r\n%s"
)


@contextmanager
def newcomer(service: Service) -> Iterator[httpx.Client]:
    """A client with another address."""
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=service.url, timeout=PATIENCE_S, transport=transport) as client:
        yield client


def test_a_full_queue_has_room_for_another_caller(models: Path, monkeypatch: Patch) -> None:
    chosen = {"queue_rows": 8, "max_images": 4, "max_batch_rows": 1}
    with (
        held(monkeypatch, settings(models, **chosen)) as (service, gate),
        ThreadPoolExecutor(3) as pool,
    ):
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


def test_all_requests_in_flight_leave_room_for_another_caller(
    models: Path, monkeypatch: Patch
) -> None:
    with held(monkeypatch, settings(models, max_inflight_requests=1)) as (service, gate):
        response = service.post("/generate", {})
        problem(response, 429, "over_share")
        assert int(response.headers["Retry-After"]) >= 1
        with newcomer(service) as client, ThreadPoolExecutor(1) as pool:
            other = pool.submit(client.post, "/generate", json={})
            service.until_in_flight(2)
            gate.opened.set()
            assert other.result().status_code == 200


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        (
            b'{"n":4,"steps":16,"record":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16],"format":"npy"}',
            60_000,
        ),
        (b'{"n":4,"scale":16}', 100_000),
    ],
)
def test_a_response_counts_before_a_row_runs(
    models: Path, monkeypatch: Patch, body: bytes, limit: int
) -> None:
    """So that nobody makes the service hold what is many times as long as the request."""
    chosen = {"max_body_bytes": 60_000, "max_inflight_bytes": limit}
    with held(monkeypatch, settings(models, **chosen)) as (service, gate):
        with Connection(service.address).send(JSON % (len(body), body)) as first:
            service.until_bytes(lambda size: size > 30_000)
            problem(send(service, "/generate", body), 429, "over_share")
            too_large = problem(service.post("/generate", {"n": 4, "scale": 30}), 413, "too_large")
            assert "IGN_MAX_INFLIGHT_BYTES" in too_large.detail
            gate.opened.set()
            assert first.answer()[0] == 200
        service.until_bytes(lambda size: size == 0)


def test_a_stream_that_cannot_end_in_time_is_rejected_at_once(
    models: Path, monkeypatch: Patch
) -> None:
    with held(monkeypatch, settings(models, stream_timeout_s=60.0)) as (service, gate):
        gate.pass_s = 0.01
        gate.opened.set()
        for _ in range(16):  # enough model calls to predict
            assert service.post("/generate", {"steps": 1}).status_code == 200
        response = service.post("/generate", {"steps": 300_000}, accept="text/event-stream")
        problem(response, 504, "deadline_unreachable")
        assert (
            service.post("/generate", {"steps": 3}, accept="text/event-stream").status_code == 200
        )


WRONG = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("request_", [WRONG, SCRAPE], ids=["error", "scrape"])
def test_an_error_waits_for_earlier_ones_of_its_caller_and_nothing_else_does(
    models: Path, monkeypatch: Patch, request_: bytes
) -> None:
    """Else a client that ignores every error would take the time of others; a scrape is long,
    too.
    """
    waits = threading.Event()
    go = asyncio.Event()

    async def sleep(seconds: float) -> None:
        if seconds > 0:
            waits.set()
            await go.wait()

    with serving(settings(models)) as service, newcomer(service) as other:
        tag = {"If-None-Match": service.get("/generate?seed=alice&model=grey/10").headers["ETag"]}
        monkeypatch.setattr(request, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
        monkeypatch.setattr(accounts, "ERRORS", Rate(1, PATIENCE_S))
        with (
            Connection(service.address).send(request_) as first,
            Connection(service.address) as second,
        ):
            first.answer()
            # earns nothing
            assert service.get("/generate?seed=alice&model=grey/10", headers=tag).status_code == 304
            second.send(request_)
            assert waits.wait(PATIENCE_S)
            first.send(b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n")
            assert first.answer()[0] == 200
            assert service.get("/models").status_code == 200
            assert other.get("/nothing").status_code == 404
            second.socket.setblocking(False)
            with pytest.raises(BlockingIOError):
                second.socket.recv(1)
            second.socket.settimeout(PATIENCE_S)
            service.loop().call_soon_threadsafe(go.set)
            second.answer()


def test_a_head_has_little_that_can_be_long(service: Service) -> None:
    kind = "multipart/form-data" + ";" * 300 + "boundary=a"
    problem(send(service, "/project", b"", kind), 415, "unsupported_media_type")
    problem(service.post(f"/project?{'a=1&' * 1100}", content=b""), 431, "head_too_large")
