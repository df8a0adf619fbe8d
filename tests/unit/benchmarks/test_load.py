import os
from typing import Any

import pytest

from benchmarks.harness.common import Json
from benchmarks.load_generator.load import failures, run
from benchmarks.load_generator.messages import request
from tests.unit.benchmarks.fake_server import OK, Reply, Seen, fake_server

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"


def report_of(seen: Seen, **changes: Any) -> Json:
    fields = {"requests": [request("/")], "connections": 1, "seconds": 0.2, "warmup_s": 0.05}
    return run(port=seen.port, server_pid=os.getpid(), **fields | changes)


def replying(data: bytes, *, close: bool = False, first: bytes | None = None) -> Reply:
    """Answer every request with these bytes; the first one with others, if given, and a close."""

    def reply(seen: Seen) -> tuple[bytes, bool]:
        if first is not None and len(seen.requests) == 1:
            return first, True
        return data, close

    return reply


def test_a_closed_loop_has_one_request_by_connection_in_turn() -> None:
    with fake_server(replying(OK)) as seen:
        report = report_of(seen, connections=3, requests=[request("/a"), request("/b")])
    assert (seen.connections, report["sent"]) == (3, len(seen.requests))
    assert 0 < report["ok"]["count"] <= report["sent"]
    assert report["ok_per_s"] == pytest.approx(report["ok"]["count"] / report["seconds"], rel=2e-3)
    assert report["seconds"] > 0.19  # timers have a resolution of a millisecond
    assert (report["errors"], failures(report)) == ({}, 0)
    assert abs(sum(b"/a" in data[:8] for data in seen.requests) * 2 - len(seen.requests)) <= 1


def test_statuses_are_told_apart() -> None:
    with fake_server(lambda seen: (OK if len(seen.requests) % 2 else BUSY, False)) as seen:
        report = report_of(seen)
    assert set(report["statuses"]) == {"200", "503"}
    busy = report["statuses"]["503"]["count"]
    assert report["ok"] == report["statuses"]["200"]
    assert abs(report["ok"]["count"] - busy) <= 1
    assert report["samples"] == {"503": "busy"}
    assert failures(report) == busy
    assert failures(report, ("200", "503")) == 0


@pytest.mark.parametrize(
    ("reply", "is_ok", "errors"),
    [
        (
            replying(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), close=True),
            True,
            set(),
        ),
        # lost with an idle connection, so it is sent again
        (replying(OK, first=b""), True, set()),
        (replying(OK[:-1], close=True), False, {"cut_off"}),
        (replying(b"hello\r\n\r\n"), False, {"not_http"}),
    ],
)
def test_a_connection_that_ends_is_opened_again(
    reply: Reply, is_ok: bool, errors: set[str]
) -> None:
    with fake_server(reply) as seen:
        report = report_of(seen)
    assert (report["ok"]["count"] > 0) is is_ok
    assert errors <= set(report["errors"])
    assert is_ok is not bool(report["errors"])
    assert seen.connections > 1
