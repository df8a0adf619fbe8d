import asyncio
import json

import numpy as np
import pytest

from benchmarks import soak
from benchmarks.load_generator import traffic
from benchmarks.load_generator.fetch import Answer, ConnectionClosed, fetch
from tests.unit.benchmarks.fake_server import OK, Seen, fake_server

GOOD = traffic.Case("good", b"", check=traffic.shown("application/json", 1))


def answer(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, headers or {}, body)


def test_every_kind_of_request_can_be_made() -> None:
    rng = np.random.default_rng(0)
    cases = [traffic.pick(rng) for _ in range(600)]
    names = {case.name.split()[0] for case in cases}
    assert {"generate", "project", "interpolate", "arithmetic", "score", "stream", "GET", "left", "damaged"} <= names
    assert any(case.leave_after_s is not None for case in cases)
    assert len({case.data for case in cases}) > 300


def test_the_same_seed_makes_the_same_requests() -> None:
    one, two = ([traffic.pick(rng).data for _ in range(50)] for rng in (np.random.default_rng(3) for _ in range(2)))
    assert one == two


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (answer(200, json.dumps({"images": [{"data": "AAAA"}]}).encode()), False),
        (answer(200, json.dumps({"images": []}).encode()), True),
        (answer(200, b"{"), True),
        (answer(500, b"oh"), True),
        (answer(422), True),
        (answer(429, headers={"retry-after": "1"}), False),
        (answer(503), True),
    ],
)
def test_an_answer_is_allowed_or_a_problem(found: Answer, wrong: bool) -> None:
    assert bool(soak.problem(GOOD, found)) is wrong


def test_a_client_gets_the_answer() -> None:
    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(OK.replace(b"200 OK", b"422 No\r\nX-A: b"))

    with fake_server(reply) as seen:
        found = asyncio.run(fetch(seen.port, traffic.post("/generate", {})))
    assert (found.status, found.body, found.headers["x-a"]) == (422, b"ok", "b")


def test_a_client_may_disconnect() -> None:
    async def never(seen: Seen, writer: asyncio.StreamWriter) -> None:
        return

    with fake_server(never) as seen:
        with pytest.raises(ConnectionClosed):
            asyncio.run(fetch(seen.port, traffic.post("/generate", {}), leave_after_s=0.01))
        with pytest.raises(TimeoutError):
            asyncio.run(fetch(seen.port, traffic.post("/generate", {}), timeout_s=0.01))


@pytest.mark.parametrize("said", [OK[:-1], b"hello\r\n\r\n", b""])
def test_half_an_answer_is_none(said: bytes) -> None:
    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    with fake_server(reply) as seen, pytest.raises(ConnectionError):
        asyncio.run(fetch(seen.port, traffic.post("/generate", {})))
