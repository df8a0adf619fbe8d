"""Attempts, waits, deadlines and errors: calls, and the responses of a service made of them."""

import asyncio
import json
import pickle
from typing import Any

import httpx
import pytest

import ign_client
from ign_client import (
    ConnectionFailed,
    DeadlineExceeded,
    ServiceFailed,
    StatusError,
    TimedOut,
    TooManyRequests,
    Unavailable,
    UnexpectedAnswer,
)
from ign_client._errors import BY_STATUS
from ign_client._wire import Limit, complete
from tests.unit.sdk.clients import (
    IMAGE,
    NOW,
    STEP,
    Answer,
    Ask,
    Canned,
    answer,
    event,
    generated,
    problem,
    ready,
    streamed,
)

PASSING = (408, 429, 502, 503, 504)
OTHERS = ((599, ServiceFailed), (307, StatusError))
WRONG_IMAGES: tuple[Any, ...] = (
    None,
    [],
    [IMAGE, IMAGE],
    [IMAGE | {"index": 1}],
    [IMAGE | {"format": "jpeg"}],
    [IMAGE | {"data": "?"}],
)
WRONG = [
    b"<html>",
    b"[" * 100_000,
    *(json.dumps(generated(images=each)).encode() for each in WRONG_IMAGES),
]
# Options of a call, its responses, the seconds between them, and the error at the end.
CALLS: list[tuple[dict[str, Any], list[Any], list[float], type[Exception] | None]] = [
    ({}, [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), answer()], [0.25, 0.5], None),
    ({}, [problem(429), problem(503), httpx.ReadError("x")], [0.25, 0.5], ConnectionFailed),
    ({}, [httpx.PoolTimeout("")] * 3, [0.25, 0.5], TimedOut),
    ({}, [httpx.Response(302, headers={"Location": ":ttp://[::1/%zz"})], [], UnexpectedAnswer),
    *(({}, [httpx.Response(200, content=content)], [], UnexpectedAnswer) for content in WRONG),
    ({}, [problem(429, Retry_After="31")], [], TooManyRequests),  # not within the timeout
    ({"deadline": 601.0}, [problem(429, Retry_After="600"), answer()], [600.0], None),
    *(
        ({}, [problem(503, Retry_After=value), answer()], [wait], None)
        for value, wait in (
            *(("3", 3.0), ("0", 0.25), ("1.5", 1.5), ("30", 30.0), ("-1", 0.25)),
            *(("Wed, 21 Oct 2026 07:28:00 GMT", 0.25), ("nan", 0.25), ("inf", 0.25)),
        )
    ),
]


@pytest.mark.parametrize(("options", "responses", "waits", "kind"), CALLS)
def test_attempts(ask: Ask, options: Any, responses: Any, waits: Any, kind: Any) -> None:
    to = Canned(*responses)
    if kind is None:
        assert ask(to, "generate", **options)[0].bytes == b"hello"
    else:
        with pytest.raises(kind, match=r"some_code|/generate") as caught:
            ask(to, "generate", **options)
        assert isinstance(responses[-1], httpx.Response) or caught.value.__cause__ is responses[-1]
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert (len(to.asked), ask.waits) == (len(responses), waits)
    assert len({(request.url, request.content) for request in to.asked}) == 1


def test_should_retry_false_is_obeyed(ask: Ask) -> None:
    with pytest.raises(DeadlineExceeded, match=r"timeout=0\.05 .* deadline=60 ") as caught:
        ask(
            Canned(problem(504, "deadline_unreachable", X_Should_Retry="False")),
            "generate",
            timeout=0.05,
            deadline=60,
        )
    assert (caught.value.retryable, ask.waits) == (False, [])


@pytest.mark.parametrize(("status", "kind"), [*BY_STATUS.items(), *OTHERS])
def test_errors_say_what_the_problem_says(ask: Ask, status: int, kind: type[StatusError]) -> None:
    response = problem(status, errors=["x", {"field": "n", "message": "too many"}, {}])
    with pytest.raises(kind) as caught:
        ask(Canned(*[response] * 3), "generate")
    error = pickle.loads(pickle.dumps(caught.value))
    assert type(error) is kind
    assert str(error) == f"{status} some_code: a reason (request abc)"
    assert error.errors == (ign_client.FieldError("n", "too many"), ign_client.FieldError("", ""))
    assert (error.retryable, len(ask.waits)) == (status in PASSING, 2 * (status in PASSING))


@pytest.mark.parametrize(
    ("options", "call", "budget", "told"),
    [
        ({}, {}, 30, "30.000"),
        ({"timeout": 8}, {}, 8, "8.000"),
        ({}, {"timeout": 1e-9}, 0, "0.001"),
        ({"timeout": None}, {}, 30, None),
        ({"deadline": 5}, {"deadline": 70}, 70, "30.000"),
        ({"deadline": 5}, {}, 5, "5.000"),
    ],
)
def test_retries_last_until_the_budget_is_spent_and_the_service_is_told_the_timeout(
    ask: Ask, options: Any, call: Any, budget: int, told: str | None
) -> None:
    failures: list[Answer] = [problem(503), httpx.ConnectError("refused")]
    to = Canned(*failures * 25)
    # Only waits take time.
    ask.settings = {"clock": lambda: NOW + sum(ask.waits), "jitter": lambda: 0.0, **options}
    with pytest.raises((Unavailable, ConnectionFailed)):
        ask(to, "generate", **call)
    assert budget - 4 <= sum(ask.waits) <= budget
    assert to.asked[0].headers.get("X-Request-Timeout") == told


def test_waits_grow_with_jitter_and_end_with_the_retries(ask: Ask) -> None:
    ask.settings |= {"max_retries": 7, "jitter": lambda: 0.5}
    with pytest.raises(Unavailable):
        ask(Canned(*[problem(503)] * 6, problem(503, Retry_After="10"), problem(503)), "generate")
    assert ask.waits == [0.375, 0.75, 1.5, 3.0, 6.0, 6.0, 10.5]


def test_a_stream_is_opened_again_until_its_first_chunk(ask: Ask) -> None:
    step = event("step", **STEP)
    broken, body = streamed(httpx.ReadError("gone"))
    late, late_body = streamed(step, httpx.ReadTimeout("slow"))
    good, _ = streamed(step + event("done", **generated()))
    assert len(ask(Canned(problem(503), broken, good), "stream_generate")) == 2
    assert ask.waits == [0.25, 0.5]
    with pytest.raises(TimedOut):
        ask(Canned(late), "stream_generate")
    assert (body.closed, late_body.closed) == (True, True)


def test_readiness_is_neither_raised_nor_retried(ask: Ask) -> None:
    assert ask(Canned(ready()), "ready")
    readiness = ask(Canned(httpx.Response(503, text="<html>")), "ready")
    assert (bool(readiness), readiness.detail, ask.waits) == (False, "Service Unavailable", [])


def test_what_waits_for_an_event_loop_is_no_blocking_call() -> None:
    with pytest.raises(RuntimeError, match="event loop"):
        complete(asyncio.sleep(0))


def test_nothing_is_waited_for_after_the_end_of_a_call() -> None:
    limit = Limit(clock=iter([0.0, 4.0, 5.0]).__next__, call_ends=5.0)
    limit.renew(9.0)
    assert limit.left() == 1.0
    with pytest.raises(TimeoutError):
        limit.left()
