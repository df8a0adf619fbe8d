"""Attempts, waits and deadlines, with canned answers and a clock that stands still."""

from email.utils import formatdate
from typing import Any

import httpx
import pytest

from ign_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    InputError,
    InvalidContent,
    TimedOut,
    TooManyRequests,
    Unavailable,
)
from tests.unit.sdk.asking import NOW, Ask, Canned, event, generated, ready, refusal, streamed

STEP = {"index": 0, "step": 1, "data": "aGVsbG8=", "format": "png", "change": 0.5}


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_two_retries_and_longer_waits(ask: Ask, status: int) -> None:
    to = Canned(refusal(status), refusal(status), httpx.Response(200, json=generated()))
    (image,) = ask(to, "generate")
    assert image.bytes == b"hello"
    assert ask.waits == [0.25, 0.5]
    assert len({(request.url, request.content) for request in to.asked}) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 413, 415, 422, 500, 501])
def test_what_would_fail_again_is_not_tried_again(ask: Ask, status: int) -> None:
    to = Canned(refusal(status))
    with pytest.raises(Exception, match=f"{status} some_code"):
        ask(to, "generate")
    assert (len(to.asked), ask.waits) == (1, [])


def test_broken_connections_are_tried_again(ask: Ask) -> None:
    to = Canned(httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), ready())
    assert ask(to, "ready")
    assert ask.waits == [0.25, 0.5]


def test_the_last_failure_is_the_one_raised(ask: Ask) -> None:
    with pytest.raises(Unavailable):
        ask(Canned(refusal(429), httpx.ReadError("x"), refusal(503)), "generate")
    with pytest.raises(ConnectionFailed):
        ask(Canned(refusal(429), refusal(503), httpx.ReadError("x")), "generate")


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("3", 3.0),
        ("0", 0.0),
        ("1.5", 1.5),
        (formatdate(NOW + 20, usegmt=True), 20.0),
        (formatdate(NOW - 20, usegmt=True), 0.0),
        ("Mon, 12 Jan 1970 13:46:50 -0000", 10.0),
        ("60", 60.0),
        ("-1", 0.0),
        ("soon", 0.25),
        ("nan", 0.25),
        ("inf", 0.25),
        ("Wed, 99 Nov 2026 99:99:99 GMT", 0.25),
    ],
)
def test_retry_after_is_honoured(ask: Ask, value: str, wait: float) -> None:
    assert ask(Canned(refusal(503, Retry_After=value), httpx.Response(200, json=generated())), "generate")
    assert ask.waits == ([wait] if wait else [])


def test_more_patience_than_a_minute_is_the_callers_to_have(ask: Ask) -> None:
    to = Canned(refusal(429, Retry_After="61"))
    with pytest.raises(TooManyRequests) as caught:
        ask(to, "generate")
    assert (caught.value.retry_after, ask.waits) == (61.0, [])


def test_should_retry_false_is_obeyed(ask: Ask) -> None:
    to = Canned(refusal(504, "deadline_unreachable", X_Should_Retry="False"))
    with pytest.raises(DeadlineExceeded):
        ask(to, "generate")
    assert len(to.asked) == 1


@pytest.mark.parametrize("most", [0, 1, 6])
def test_as_many_retries_as_wanted(most: int) -> None:
    waits: list[float] = []
    to = Canned(*(refusal(503) for _ in range(most + 1)))
    client = Client(transport=to, max_retries=most, sleep=waits.append, jitter=lambda: 0.0)
    with client, pytest.raises(Unavailable):
        client.generate()
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0][:most]


def test_jitter_spreads_the_waits() -> None:
    waits: list[float] = []
    to = Canned(refusal(503), refusal(503, Retry_After="10"), httpx.Response(200, json=generated()))
    with Client(transport=to, sleep=waits.append, jitter=lambda: 0.5) as client:
        assert len(client.generate()) == 1
    assert waits == [0.375, 10.5]


@pytest.mark.parametrize("most", [-1, "two"])
def test_other_numbers_of_retries_are_refused(most: Any) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InputError, match="max_retries"):
            kind(max_retries=most)


# Time-outs


@pytest.mark.parametrize(
    ("options", "header", "connect", "read"),
    [
        ({}, "30.000", 30.0, 31.0),
        ({"timeout": 0.25}, "0.250", 0.25, 1.25),
        ({"timeout": 1e-9}, "0.001", 1e-9, 1.000000001),
        ({"timeout": None}, None, None, None),
    ],
)
def test_the_service_is_told_how_long_we_wait(
    ask: Ask, options: dict[str, Any], header: str | None, connect: float | None, read: float | None
) -> None:
    to = Canned(httpx.Response(200, json=generated()))
    ask(to, "generate", **options)
    (request,) = to.asked
    assert request.headers.get("X-Request-Timeout") == header
    assert request.extensions["timeout"]["connect"] == connect
    assert request.extensions["timeout"]["read"] == pytest.approx(read)


def test_a_stream_may_be_silent_for_longer(ask: Ask) -> None:
    done = {**generated(), "images": []}
    answer, _ = streamed(event("done", **done))
    to = Canned(answer)
    ask.stream(to, "stream_generate", timeout=2)
    assert to.asked[0].extensions["timeout"] == {"connect": 2, "read": 30.0, "write": 3.0, "pool": 3.0}
    assert to.asked[0].headers["X-Request-Timeout"] == "2.000"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_times_that_are_none(ask: Ask, timeout: float) -> None:
    with pytest.raises(InputError, match="timeout"):
        ask(Canned(), "generate", timeout=timeout)
    with pytest.raises(InputError, match="timeout"):
        Client(timeout=timeout)


# Streams


def test_a_stream_is_opened_again_until_its_first_piece(ask: Ask) -> None:
    broken, body = streamed(httpx.ReadError("gone"))
    good, _ = streamed(event("step", **STEP) + event("done", **generated()))
    events = ask.stream(Canned(refusal(503), broken, good), "stream_generate")
    assert len(events) == 2
    assert ask.waits == [0.25, 0.5]
    assert body.closed


@pytest.mark.parametrize(
    ("raised", "kind"), [(httpx.ReadError("gone"), ConnectionFailed), (httpx.ReadTimeout("slow"), TimedOut)]
)
def test_after_that_it_is_not(ask: Ask, raised: Exception, kind: type[Exception]) -> None:
    answer, body = streamed(event("step", **STEP), raised)
    to = Canned(answer)
    with pytest.raises(kind) as caught:
        ask.stream(to, "stream_generate")
    assert caught.value.__cause__ is raised
    assert (len(to.asked), body.closed) == (1, True)


def test_refused_streams_carry_their_problem(ask: Ask) -> None:
    with pytest.raises(InvalidContent) as caught:
        ask.stream(Canned(refusal(422, "invalid_value")), "stream_generate")
    assert caught.value.code == "invalid_value"
