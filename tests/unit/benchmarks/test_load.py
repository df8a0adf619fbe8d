import asyncio
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.processes import free_port
from benchmarks.load_generator import load
from benchmarks.load_generator.header_sets import HEADER_SETS, sent_by
from benchmarks.load_generator.load import Spec, arrivals, failures, run
from benchmarks.load_generator.messages import request
from tests.unit.benchmarks.fake_server import OK, Seen, fake_server

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"


async def at_once(seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


def spec(seen: Seen, **changes: Any) -> Spec:
    fields: dict[str, Any] = {"requests": [request("/")], "connections": 2, "seconds": 0.2, "warmup_s": 0.05}
    return Spec(port=seen.port, **(fields | changes))


def test_a_request_is_http() -> None:
    assert request("/a", b"xy", {"Accept": "b"}) == (
        b"POST /a HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: b\r\nContent-Length: 2\r\n\r\nxy"
    )
    assert b"Content-Length" not in request("/a", method="GET")


def test_a_closed_loop_has_one_request_by_connection() -> None:
    most = 0

    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        nonlocal most
        writer.write(OK)
        most = max(most, seen.connections)

    with fake_server(reply) as seen:
        found = run(spec(seen, connections=3))
    assert most == 3
    assert found["loop"] == "closed"
    assert found["sent"] == len(seen.requests)
    assert 0 < found["ok"]["count"] <= found["sent"]
    assert (
        found["requests_per_s"] == found["ok_per_s"] == pytest.approx(found["ok"]["count"] / found["seconds"], rel=2e-3)
    )
    assert found["seconds"] > 0.19  # timers have a resolution of a millisecond
    assert found["errors"] == {}
    assert found["unanswered"] == found["reconnects"] == found["resent"] == 0
    assert found["client_core_ms_per_request"] > 0


def test_requests_are_sent_in_turn() -> None:
    with fake_server(at_once) as seen:
        run(spec(seen, requests=[request("/a"), request("/b"), request("/c")], connections=1))
    paths = [each.split()[1] for each in seen.requests]
    assert paths == [(b"/a", b"/b", b"/c")[i % 3] for i in range(len(paths))]


def test_a_closed_loop_waits_for_its_first_answer() -> None:
    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(OK)

    with fake_server(reply) as seen:
        found = run(spec(seen, connections=1, seconds=0.01, warmup_s=0.0))
    assert found["ok"]["count"] >= 1
    assert found["seconds"] > 0.19  # timers have a resolution of a millisecond


def test_statuses_are_told_apart() -> None:
    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(OK if len(seen.requests) % 2 else BUSY)

    with fake_server(reply) as seen:
        found = run(spec(seen, connections=1))
    assert set(found["statuses"]) == {"200", "503"}
    assert found["rejected"] == found["statuses"]["503"]
    assert found["ok"] == found["statuses"]["200"]
    assert abs(found["ok"]["count"] - found["rejected"]["count"]) <= 1
    assert found["samples"] == {"503": "busy"}
    assert found["ok_per_s"] < found["requests_per_s"]
    assert failures(found) == found["rejected"]["count"]
    assert failures(found, ("200", "503")) == 0


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    """A server that stalls at first: all that were due meanwhile have waited, not just the one that was sent."""
    stall_s, rate = 0.3, 200.0

    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        if len(seen.requests) == 1:
            await asyncio.sleep(stall_s)
        writer.write(OK)

    with fake_server(reply) as seen:
        found = run(spec(seen, connections=1, rate=rate, seconds=0.5, warmup_s=0.0))
    due = len(arrivals(0.0, 0.5, rate))
    early = len(arrivals(0.0, stall_s / 3, rate))
    assert found["ok"]["count"] == found["sent"] == len(seen.requests) == due
    assert early > 5
    # Whoever was due in the first third of the stall waited for the other two at least.
    slow = found["ok"]
    assert slow["max_ms"] >= stall_s * 1e3 * 0.9
    assert slow["mean_ms"] >= early / due * stall_s * 1e3 * 2 / 3
    assert found["lateness"]["max_ms"] >= stall_s * 1e3 * 2 / 3


def test_an_open_loop_sends_at_its_rate_whatever_the_server_does() -> None:
    async def never(seen: Seen, writer: asyncio.StreamWriter) -> None:
        return

    with fake_server(never) as seen:
        found = run(spec(seen, connections=100, rate=100.0, seconds=0.3, warmup_s=0.0, grace_s=0.1))
    due = len(arrivals(0.0, 0.3, 100.0))
    assert found["sent"] == found["unanswered"] == due
    assert found["ok"] == {"count": 0}


def test_arrivals_are_those_of_a_poisson_process() -> None:
    times = arrivals(10.0, 20.0, 1000.0)
    gaps = np.diff(times)
    assert 10.0 < times[0] <= times[-1] < 20.0
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert arrivals(10.0, 20.0, 1000.0) == times


def test_a_connection_that_the_server_closes_is_opened_again() -> None:
    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        writer.close()

    with fake_server(reply) as seen:
        found = run(spec(seen))
    assert found["ok"]["count"] > 1
    assert found["reconnects"] > 0
    assert found["errors"] == {}


def test_a_request_lost_with_an_idle_connection_is_sent_again() -> None:
    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        if len(seen.requests) == 1:
            writer.close()
        else:
            writer.write(OK)

    with fake_server(reply) as seen:
        found = run(spec(seen, connections=1))
    assert found["resent"] == 1
    assert found["ok"]["count"] > 0
    assert found["errors"] == {}
    assert seen.requests[0] == seen.requests[1]


def test_half_an_answer_is_an_error() -> None:
    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(OK[:-1])
        writer.close()

    with fake_server(reply) as seen:
        found = run(spec(seen, connections=1))
    assert found["errors"] == {"cut_off": len(seen.requests)}
    assert found["ok"] == {"count": 0}


def test_what_is_not_http_is_an_error() -> None:
    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\r\n\r\n")

    with fake_server(reply) as seen:
        found = run(spec(seen, connections=1))
    assert found["errors"]["not_http"] >= 1
    assert found["ok"] == {"count": 0}


def test_no_server_is_said_at_once() -> None:
    with pytest.raises(OSError, match=r"refused|Connect"):
        run(Spec(port=free_port(), requests=[request("/")], connections=1, seconds=60.0))


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_report() -> None:
    with fake_server(at_once) as seen:
        here, there = run(spec(seen)), load.measure(spec(seen))
        with pytest.raises(RuntimeError, match="the load generator failed"):
            load.measure(Spec(port=free_port(), requests=[request("/")], connections=1, seconds=1.0))
    assert here.keys() == there.keys()
    assert there["ok"]["count"] > 0


@pytest.mark.parametrize("senders", ["plain", "gateway"])
def test_requests_have_the_headers_of_their_senders(senders: str) -> None:
    requests = [request("/a", b"body"), request("/b", method="GET")]
    sent = sent_by(senders, requests)
    assert len(sent) == len(requests) * (len(HEADER_SETS) if senders == "gateway" else 1)
    assert all(data.startswith((b"POST /a HTTP/1.1\r\n", b"GET /b HTTP/1.1\r\n")) for data in sent)
    assert sum(data.endswith(b"\r\n\r\nbody") for data in sent) == len(sent) // 2
    assert any(b"\r\nCF-Ray: " in data for data in sent) is (senders == "gateway")
