import asyncio
import json

import numpy as np
import pytest

from benchmarks.load_generator.fetch import Answer
from benchmarks.reliability.campaign import problem
from benchmarks.reliability.hostile_inputs import damaged, hostile
from benchmarks.reliability.known_answer import KNOWN, KnownAnswers, right_answer
from tests.unit.benchmarks.fake_server import OK, Seen, fake_server

DOCUMENT = json.dumps({"code": "malformed", "detail": "no"}).encode()


def test_the_same_seed_makes_the_same_hostile_requests() -> None:
    one, two = ([hostile(np.random.default_rng((3, number))) for number in range(60)] for _ in range(2))
    assert one == two
    assert len({each.data for each in one}) == 60


def test_every_group_of_hostile_requests_is_made() -> None:
    kinds = {hostile(np.random.default_rng((0, number))).kind for number in range(200)}
    assert kinds == {"picture", "latent", "JSON", "form", "tensor", "HTTP", "headers"}


def test_damage_changes_bytes() -> None:
    data = bytes(range(256))
    assert any(damaged(np.random.default_rng(seed), data) != data for seed in range(3))
    assert damaged(np.random.default_rng(0), b"a")


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (Answer(200), False),
        (Answer(422, body=DOCUMENT), False),
        (Answer(504, body=DOCUMENT), False),
        (Answer(500, body=DOCUMENT), True),
        (Answer(502, body=DOCUMENT), True),
        (Answer(400, body=b"bad request"), True),
        (Answer(400, body=b"{}"), True),
        (Answer(400, body=DOCUMENT.replace(b"no", b"Traceback")), True),
    ],
)
def test_a_response_to_a_hostile_request_is_judged(answer: Answer, wrong: bool) -> None:
    assert bool(problem(answer)) is wrong


def test_a_good_client_knows_the_right_bytes() -> None:
    answers = iter(
        [
            OK,
            OK,
            OK.replace(b"ok", b"no"),
            b"HTTP/1.1 503 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200",
        ]
    )

    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(next(answers))
        writer.close()

    async def ask(port: int) -> KnownAnswers:
        known = KnownAnswers(await right_answer(port))
        for _ in range(5):
            await known.ask(port)
        return known

    with fake_server(reply) as seen:
        known = asyncio.run(ask(seen.port))
    assert seen.requests[0] == KNOWN
    assert known.outcomes == {"ok": 1, "wrong": 1, "refused": 1, "503": 1, "ConnectionError": 1}
    assert len(known.seconds) == 1
    assert [outcome for outcome, _, _ in known.failures] == ["wrong", "refused", "503", "ConnectionError"]
