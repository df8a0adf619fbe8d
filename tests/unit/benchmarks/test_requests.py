"""The random requests, the judgement of their answers, the clients that send them, and the comparison of answers."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.answer_digests import canonical, compare, requests
from benchmarks.load_generator import traffic
from benchmarks.load_generator.fetch import Answer, ConnectionClosed, fetch
from benchmarks.load_generator.messages import post
from benchmarks.reliability import hostile_inputs
from benchmarks.reliability.known_answer import KNOWN, KnownAnswers, right_answer
from benchmarks.request_path import steady_calls
from tests.unit.benchmarks.fake_server import OK, Seen, fake_server

DOCUMENT = json.dumps({"code": "malformed", "detail": "no"}).encode()


@pytest.mark.parametrize("make", [traffic.pick, hostile_inputs.hostile])
def test_the_same_seed_makes_the_same_requests(make: Callable[[traffic.Rng], traffic.Case]) -> None:
    one, two = ([make(np.random.default_rng((3, number))).data for number in range(60)] for _ in range(2))
    assert one == two
    assert len(set(one)) > 45


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (
            traffic.pick,
            {"generate", "project", "interpolate", "arithmetic", "score", "stream", "infer", "GET", "left", "damaged"},
        ),
        (hostile_inputs.hostile, {"body", "JSON", "image", "deep", "coding", "HTTP", "headers"}),
    ],
)
def test_every_kind_of_request_is_made(make: Callable[[traffic.Rng], traffic.Case], kinds: set[str]) -> None:
    rng = np.random.default_rng(0)
    assert kinds <= {make(rng).kind.split()[0] for _ in range(500)}


def test_damage_changes_bytes() -> None:
    data = bytes(range(256))
    assert any(hostile_inputs.damaged(np.random.default_rng(seed), data) != data for seed in range(3))
    assert hostile_inputs.damaged(np.random.default_rng(0), b"a")


@pytest.mark.parametrize(
    ("answer", "is_wrong"),
    [
        (Answer(200, body=json.dumps({"images": [{"data": "AAAA"}]}).encode()), False),
        (Answer(200, body=json.dumps({"images": []}).encode()), True),
        (Answer(200, body=b"{"), True),
        (Answer(500, body=b"oh"), True),
        (Answer(422), True),
        (Answer(429, {"retry-after": "1"}), False),
        (Answer(503), True),
    ],
)
def test_an_answer_is_allowed_or_a_problem(answer: Answer, is_wrong: bool) -> None:
    case = traffic.Case("good", b"", check=traffic.shown("application/json", 1))
    assert bool(traffic.problem(case, answer)) is is_wrong


@pytest.mark.parametrize(
    ("answer", "is_wrong"),
    [
        (Answer(200), False),
        (Answer(422, body=DOCUMENT), False),
        (Answer(504, body=DOCUMENT), False),
        (Answer(500, body=DOCUMENT), True),
        (Answer(400, body=b"bad request"), True),
        (Answer(400, body=b"{}"), True),
        (Answer(400, body=DOCUMENT.replace(b"no", b"Traceback")), True),
    ],
)
def test_an_answer_to_a_hostile_request_is_judged(answer: Answer, is_wrong: bool) -> None:
    assert bool(hostile_inputs.problem(answer)) is is_wrong


async def never(seen: Seen, writer: object) -> None:
    return


def test_a_client_gets_the_answer_or_disconnects() -> None:
    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(OK.replace(b"200 OK", b"422 No\r\nX-A: b"))

    with fake_server(reply) as seen:
        answer = asyncio.run(fetch(seen.port, post("/generate", {})))
    assert (answer.status, answer.body, answer.headers["x-a"]) == (422, b"ok", "b")
    with fake_server(never) as seen:
        with pytest.raises(ConnectionClosed):
            asyncio.run(fetch(seen.port, post("/generate", {}), leave_after_s=0.01))
        with pytest.raises(TimeoutError):
            asyncio.run(fetch(seen.port, post("/generate", {}), timeout_s=0.01))


@pytest.mark.parametrize("said", [OK[:-1], b"hello\r\n\r\n", b""])
def test_half_an_answer_is_none(said: bytes) -> None:
    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    with fake_server(reply) as seen, pytest.raises(ConnectionError):
        asyncio.run(fetch(seen.port, post("/generate", {})))


def test_a_good_client_knows_the_right_bytes() -> None:
    busy = b"HTTP/1.1 503 No\r\n%bContent-Length: 0\r\n\r\n"
    said = iter([OK, OK, OK.replace(b"ok", b"no"), busy % b"Retry-After: 1\r\n", busy % b"", b"HTTP/1.1 200"])

    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(next(said))
        writer.close()

    async def ask(port: int) -> KnownAnswers:
        known = KnownAnswers(await right_answer(port))
        for _ in range(5):
            await known.ask(port)
        return known

    with fake_server(reply) as seen:
        known = asyncio.run(ask(seen.port))
    assert seen.requests[0] == KNOWN
    assert known.outcomes == {"ok": 1, "wrong": 1, "rejected": 1, "503": 1, "ConnectionError": 1}
    assert len(known.seconds) == 1
    assert [outcome for outcome, _, _ in known.failures] == ["wrong", "rejected", "503", "ConnectionError"]


# Digests of answers


def digested(headers: dict[str, str] | None = None, changes: dict[str, object] | None = None) -> bytes:
    fields = {"Content-Type": "application/json", "X-IGN-Seed": "7", "X-Request-ID": "a", "Server-Timing": "q;dur=1"}
    body = {"seed": 7, "request_id": "a", "timing": {"queue_ms": 0.1}, "images": [{"data": "AA==", "distance": 0.5}]}
    return canonical(200, fields | (headers or {}), json.dumps(body | (changes or {})).encode())


def test_requests_have_names_of_their_own_and_stay_the_same() -> None:
    first, second = list(requests(100)), list(requests(100))
    assert len({name for name, _ in first}) == len(first) > 80
    assert first == second


def test_only_pixels_numbers_and_contract_headers_count() -> None:
    for changes in ({"request_id": "b"}, {"timing": {"queue_ms": 9.0}}):
        assert digested(changes=dict(changes)) == digested()
    assert digested({"X-Request-ID": "b", "Server-Timing": "q;dur=2"}) == digested()
    assert digested(changes={"images": [{"data": "AQ==", "distance": 0.5}]}) != digested()
    assert digested(changes={"images": [{"data": "AA==", "distance": 0.6}]}) != digested()
    assert digested({"X-IGN-Seed": "8"}) != digested()


def test_events_count_in_any_order_without_progress_and_comments() -> None:
    headers, event = {"Content-Type": "text/event-stream"}, b'event: step\ndata: {"index": %d, "step": 1}\n\n'
    progress = b'event: progress\ndata: {"steps_done": 1}\n\n: still here\n\n'
    assert canonical(200, headers, event % 1 + progress + event % 0) == canonical(200, headers, event % 0 + event % 1)
    assert canonical(200, headers, event % 0) != canonical(200, headers, event % 1)


def test_a_changed_and_a_missing_answer_are_differences() -> None:
    differences = compare({"same": "x", "other": "x", "gone": "x"}, {"same": "x", "other": "y"})
    assert differences == ["other: x -> y", "gone: x -> absent"]


def test_the_calls_of_timers_do_not_count() -> None:
    respond, timer, log = (compile("0", name, "eval") for name in ("respond", "timer", "log"))
    repetitions = [Counter(each) for each in ([respond, log], [respond, timer, log], [respond], [respond, log])]
    assert steady_calls(repetitions) == Counter([respond, log])
