"""The random requests, the judgement of their answers, the clients that send them, and the
comparison of answers.
"""

import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.load_generator.fetch import Answer
from benchmarks.reliability import hostile_inputs, soak
from benchmarks.reliability.cases import Case, Rng, problem
from benchmarks.request_path import steady_calls
from tests.contract.data import CALLS

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


def test_the_calls_of_timers_do_not_count() -> None:
    respond, timer, log = (compile("0", name, "eval") for name in ("respond", "timer", "log"))
    repetitions = [
        Counter(each) for each in ([respond, log], [respond, timer, log], [respond], [respond, log])
    ]
    assert steady_calls(repetitions) == Counter([respond, log])
