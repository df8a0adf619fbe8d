"""The random requests, the judgement of their answers, the clients that send them, and the
comparison of answers.
"""

import json
from collections import Counter

import pytest

from benchmarks.load_generator.fetch import Answer
from benchmarks.reliability.cases import Case, problem
from benchmarks.request_path import steady_calls

DOCUMENT = json.dumps({"code": "malformed", "detail": "no"}).encode()


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
