"""The random requests, the judgement of their answers, the clients that send them, and the
comparison of answers.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.load_generator.fetch import Answer, fetch
from benchmarks.reliability import hostile_inputs, soak
from benchmarks.reliability.cases import KNOWN, Case, Rng, problem
from benchmarks.reliability.soak import KnownAnswers, right_answers
from benchmarks.request_path import steady_calls
from tests.contract.data import CALLS
from tests.unit.benchmarks.fake_server import OK, Seen, fake_server

DOCUMENT = json.dumps({"code": "malformed", "detail": "no"}).encode()
GOOD = {*CALLS, "/v2/models/mnist/infer", "GET", "left"}
HOSTILE = {"body", "JSON", "image", "deep", "HTTP", "headers"}


@pytest.mark.parametrize(("make", "kinds"), [(soak.pick, GOOD), (hostile_inputs.hostile, HOSTILE)])
def test_every_kind_of_request_is_made_and_the_same_again(
    make: Callable[[Rng], Case], kinds: set[str]
) -> None:
    made = [make(np.random.default_rng((3, number))) for number in range(200)]
    assert [case.data for case in made[:50]] == [
        make(np.random.default_rng((3, number))).data for number in range(50)
    ]
    assert kinds <= {case.kind.split()[0] for case in made}
    assert len({case.data for case in made}) > 50


@pytest.mark.parametrize(
    ("answer", "is_wrong", "is_wrong_to_hostile"),
    [
        (Answer(200, body=b"{"), False, False),
        (Answer(429, {"retry-after": "1"}, DOCUMENT), False, False),
        (Answer(503, body=DOCUMENT), True, False),
        (Answer(422, body=DOCUMENT), True, False),
        (Answer(504, body=DOCUMENT), True, False),
        (Answer(500, body=DOCUMENT), True, True),
        (Answer(400, body=b"bad request"), True, True),
        (Answer(400, body=b"{}"), True, True),
        (Answer(400, body=DOCUMENT.replace(b"no", b"Traceback")), True, True),
    ],
)
def test_an_answer_is_allowed_or_a_problem(
    answer: Answer, is_wrong: bool, is_wrong_to_hostile: bool
) -> None:
    assert bool(problem(Case("good", b""), answer)) is is_wrong
    assert bool(problem(Case("hostile", b"", None), answer)) is is_wrong_to_hostile


def test_a_good_client_knows_the_right_bytes_and_may_disconnect() -> None:
    busy = b"HTTP/1.1 503 No\r\n%bContent-Length: 0\r\n\r\n"
    data = [
        OK,
        OK,
        OK.replace(b"ok", b"no"),
        busy % b"Retry-After: 1\r\n",
        busy % b"",
        b"HTTP/1.1 200",
        b"hello\r\n\r\n",
    ]

    def reply(seen: Seen) -> tuple[bytes, bool]:
        turn = len(seen.requests) - 1
        return (data[turn], True) if turn < len(data) else (b"", False)

    async def ask(port: int) -> KnownAnswers:
        known = KnownAnswers(await right_answers(port))
        for _ in data[1:]:
            await known.ask(port)
        left = Case("left", KNOWN, leave_after_s=0.01)
        assert await soak.sent(port, left, {}) == ("left", "")
        with pytest.raises(TimeoutError):
            await fetch(port, KNOWN, timeout_s=0.01)
        return known

    with fake_server(reply) as seen:
        known = asyncio.run(ask(seen.port))
    assert seen.requests[0] == KNOWN
    assert known.outcomes == {"ok": 1, "wrong": 1, "rejected": 1, "503": 1, "ConnectionError": 2}
    assert len(known.seconds) == 1
    assert [outcome for outcome, _, _ in known.failures] == ["wrong", "rejected", "503"] + [
        "ConnectionError"
    ] * 2


def test_the_calls_of_timers_do_not_count() -> None:
    respond, timer, log = (compile("0", name, "eval") for name in ("respond", "timer", "log"))
    repetitions = [
        Counter(each) for each in ([respond, log], [respond, timer, log], [respond], [respond, log])
    ]
    assert steady_calls(repetitions) == Counter([respond, log])
