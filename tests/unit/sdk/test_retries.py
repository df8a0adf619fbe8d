"""Attempts, waits and deadlines, with canned responses and a clock that stands still."""

from email.utils import formatdate
from typing import Any

import httpx
import pytest

import ign_client
from ign_client import Client, ConnectionFailed, DeadlineExceeded, StatusError, TooManyRequests, Unavailable
from tests.unit.sdk.clients import NOW, STEP, Ask, Canned, answer, event, generated, problem, ready, streamed


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 408, 413, 415, 422, 429, 500, 501, 502, 503, 504])
def test_two_retries_with_longer_waits_if_the_status_may_pass(ask: Ask, status: int) -> None:
    to = Canned(problem(status), problem(status), answer())
    if status in (408, 429, 502, 503, 504):
        (image,) = ask(to, "generate")
        assert image.bytes == b"hello"
        assert ask.waits == [0.25, 0.5]
        assert len({(request.url, request.content) for request in to.asked}) == 1
    else:
        with pytest.raises(StatusError, match=f"{status} some_code"):
            ask(to, "generate")
        assert (len(to.asked), ask.waits) == (1, [])


def test_broken_connections_are_tried_again_and_the_last_failure_is_raised(ask: Ask) -> None:
    assert ask(Canned(httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), ready()), "ready")
    assert ask.waits == [0.25, 0.5]
    with pytest.raises(Unavailable):
        ask(Canned(problem(429), httpx.ReadError("x"), problem(503)), "generate")
    with pytest.raises(ConnectionFailed):
        ask(Canned(problem(429), problem(503), httpx.ReadError("x")), "generate")
    assert ConnectionFailed.retryable


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        *(("3", 3.0), ("0", 0.25), ("1.5", 1.5), ("30", 30.0), ("-1", 0.25)),
        *(("soon", 0.25), ("nan", 0.25), ("inf", 0.25), ("Wed, 99 Nov 2026 99:99:99 GMT", 0.25)),
        (formatdate(NOW + 20, usegmt=True), 20.0),
        (formatdate(NOW - 20, usegmt=True), 0.25),
        ("Mon, 12 Jan 1970 13:46:50 -0000", 10.0),
    ],
)
def test_retry_after_is_honoured(ask: Ask, value: str, wait: float) -> None:
    """A date is one by the clock of the service."""
    date = formatdate(NOW, usegmt=True)
    assert ask(Canned(problem(503, Retry_After=value, Date=date), answer()), "generate")
    assert ask.waits == [wait]
    assert ask(Canned(problem(503, Retry_After=date), answer()), "generate")  # without that clock
    assert ask.waits == [wait, 0.25]


def test_should_retry_false_is_obeyed(ask: Ask) -> None:
    with pytest.raises(DeadlineExceeded):
        ask(Canned(problem(504, "deadline_unreachable", X_Should_Retry="False")), "generate")
    with pytest.raises(TooManyRequests) as caught:  # not within the timeout
        ask(Canned(problem(429, Retry_After="31")), "generate")
    assert (caught.value.retry_after, caught.value.retryable, ask.waits) == (31.0, True, [])
    assert ask(Canned(problem(429, Retry_After="600"), answer()), "generate", deadline=601.0)
    assert ask.waits == [600.0]


@pytest.mark.parametrize(
    ("options", "call", "budget"),
    [({}, {}, 30), ({"timeout": 8}, {}, 8), ({"timeout": None}, {}, 30), ({"deadline": 5}, {"deadline": 70}, 70)],
)
@pytest.mark.parametrize("failure", [problem(503), httpx.ConnectError("refused")])
def test_retries_last_until_the_budget_is_spent(options: Any, call: Any, budget: int, failure: Any) -> None:
    now = [NOW]  # only waits take time

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with (
        Client(
            transport=Canned(*[failure] * 50), sleep=sleep, clock=lambda: now[0], jitter=lambda: 0, **options
        ) as client,
        pytest.raises((Unavailable, ConnectionFailed)),
    ):
        client.generate(**call)
    assert budget - 4 <= now[0] - NOW <= budget


def test_the_deadline_is_looked_at_between_pieces(ask: Ask) -> None:
    now = [NOW]
    ask.settings = {"clock": lambda: now[0]}
    response, body = streamed(b" ", lambda: now.append(now.pop() + 5), b" ", b" ")
    with pytest.raises(ign_client.TimedOut):
        ask(Canned(response), "generate", deadline=5)
    assert body.closed


@pytest.mark.parametrize("most", [0, 1, 6])
@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_as_many_retries_as_wanted_and_waits_with_jitter(most: int, jitter: float) -> None:
    waits: list[float] = []
    to = Canned(*(problem(503) for _ in range(most + 1)))
    client = Client(transport=to, max_retries=most, sleep=waits.append, jitter=lambda: jitter)
    with client, pytest.raises(Unavailable):
        client.generate()
    assert waits == [seconds * (0.5 + 0.5 * jitter) for seconds in (0.5, 1, 2, 4, 8, 8)[:most]]
    to = Canned(problem(503, Retry_After="10"), answer())
    with Client(transport=to, sleep=waits.append, jitter=lambda: jitter) as client:
        client.generate()
    assert waits[-1] == 10.0 * (1 + 0.1 * jitter)


@pytest.mark.parametrize(
    ("options", "header", "wait"),
    [
        ({}, "30.000", 31.0),
        ({"timeout": 0.25}, "0.250", 1.25),
        ({"timeout": 1e-9}, "0.001", 1.000000001),
        ({"deadline": 5}, "5.000", 5.0),
        ({"timeout": None}, None, None),
    ],
)
def test_the_service_is_told_the_timeout(
    ask: Ask, options: dict[str, Any], header: str | None, wait: float | None
) -> None:
    to = Canned(answer())
    ask(to, "generate", **options)
    (request,) = to.asked
    assert request.headers.get("X-Request-Timeout") == header
    assert request.extensions["timeout"] == dict.fromkeys(("connect", "read", "write", "pool"), pytest.approx(wait))
    to = Canned(streamed(event("step", **STEP) + event("done", **generated()))[0])
    ask.stream(to, "stream_generate", **options)  # which may be silent for longer
    assert to.asked[0].headers.get("X-Request-Timeout") == header
    assert to.asked[0].extensions["timeout"]["read"] == (None if wait is None else pytest.approx(max(wait, 30.0)))


def test_a_stream_is_opened_again_until_its_first_chunk(ask: Ask) -> None:
    broken, body = streamed(httpx.ReadError("gone"))
    good, _ = streamed(event("step", **STEP) + event("done", **generated()))
    assert len(ask.stream(Canned(problem(503), broken, good), "stream_generate")) == 2
    assert ask.waits == [0.25, 0.5]
    assert body.closed


@pytest.mark.parametrize(
    ("raised", "kind"), [(httpx.ReadError("gone"), ConnectionFailed), (httpx.ReadTimeout("slow"), ign_client.TimedOut)]
)
def test_after_that_it_is_not(ask: Ask, raised: Exception, kind: type[Exception]) -> None:
    response, body = streamed(event("step", **STEP), raised)
    to = Canned(response)
    with pytest.raises(kind) as caught:
        ask.stream(to, "stream_generate")
    assert caught.value.__cause__ is raised
    assert (len(to.asked), body.closed) == (1, True)
