import asyncio
import base64
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from benchmarks.harness.processes import ROOT
from benchmarks.peers import common
from benchmarks.peers.one_run import Order, Refused, compare, first_that_answers, on, take
from benchmarks.peers.payloads import PNG, RAW, as_it_is
from benchmarks.peers.servers import OURS
from tests.unit.benchmarks.fake_server import Seen, fake_server

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"
ECHO = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
WAYS = [as_it_is("/one", "text/plain"), as_it_is("/two", "text/plain")]


def png(level: int, *, compress_level: int = 1) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (28, 28), level).save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def test_pictures_are_compared_by_their_pixels() -> None:
    compare(PNG, [png(3, compress_level=9)], [png(3, compress_level=1)])
    with pytest.raises(Refused, match="png 1: the answer is another picture"):
        compare(PNG, [png(3), png(4)], [png(3), png(3)])


def test_floats_are_compared_but_for_their_last_bits() -> None:
    row = np.linspace(-1, 1, 784, dtype=np.float32)
    compare(RAW, [(row + np.float32(1e-6)).tobytes()], [row.tobytes()])
    for other in (row + np.float32(1e-4), row[:-1], np.where(row > 0.9, np.nan, row)):
        with pytest.raises(Refused, match="raw 0"):
            compare(RAW, [other.astype(np.float32).tobytes()], [row.tobytes()])


@pytest.mark.parametrize(("payload", "expected"), [(PNG, png(3)), (RAW, bytes(4 * 784))])
def test_what_is_no_picture_is_refused(payload: str, expected: bytes) -> None:
    with pytest.raises(Refused, match=rf"{payload} 0: b'no' is none"):
        compare(payload, [b"no"], [expected])


def test_one_answer_must_not_be_missing() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare(PNG, [png(3)], [png(3), png(3)])


def test_the_first_way_that_is_answered_is_taken() -> None:
    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(ECHO if b"/two" in seen.requests[-1] else NOT_FOUND)

    with fake_server(reply) as seen:
        assert first_that_answers(WAYS, seen.port, b"x", patience_s=0) is WAYS[1]


def test_a_server_that_is_not_ready_is_asked_again() -> None:
    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(ECHO if len(seen.requests) > 2 else NOT_FOUND)

    with fake_server(reply) as seen:
        assert first_that_answers(WAYS, seen.port, b"x", patience_s=60) is WAYS[0]
        assert len(seen.requests) == 3


def test_a_server_that_refuses_every_way_says_why() -> None:
    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(NOT_FOUND.replace(b"404", b"422"))

    with fake_server(reply) as seen, pytest.raises(Refused, match=r"422 b'no' to POST /one.*; 422 b'no' to POST /two"):
        first_that_answers(WAYS, seen.port, b"x", patience_s=60)


def test_cpus_are_given_back() -> None:
    before = os.sched_getaffinity(0)
    with on([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


@pytest.fixture(scope="module")
def bodies() -> dict[str, list[bytes]]:
    noise = np.random.default_rng(0).standard_normal((4, 1, 28, 28), dtype=np.float32)
    return {PNG: [png(level) for level in (0, 100)], RAW: [row.tobytes() for row in noise]}


def in_base64(found: Mapping[str, Sequence[bytes]]) -> dict[str, list[str]]:
    return {payload: [base64.b64encode(body).decode() for body in each] for payload, each in found.items()}


@pytest.fixture
def order(bodies: dict[str, list[bytes]]) -> Order:
    cpus = sorted(os.sched_getaffinity(0))
    return Order(
        name="fastapi",
        processes=1,
        rows=16,
        wait_ms=0,
        python=sys.executable,
        models=str(ROOT / "models"),
        model="mnist/1",
        bodies=in_base64(bodies),
        expected={},
        connections=[4],
        seconds=0.3,
        warmup_s=0.1,
        server_cpus=cpus,
        client_cpus=cpus,
    )


@pytest.mark.slow
def test_plain_fastapi_serves_what_this_service_serves(order: Order) -> None:
    ours = take(replace(order, name=OURS, connections=[]))
    assert ours.get("failed") is None
    report = take(replace(order, expected=ours["answers"]))
    assert report.get("failed") is None
    for payload in (PNG, RAW):
        load = report["loads"][payload]["4"]
        assert list(load["statuses"]) == ["200"]
        assert load["ok_per_s"] > 0
        assert load["server_core_ms_per_request"] >= 0
    assert report["memory_mib"] > 0

    other = {PNG: ours["answers"][PNG][::-1], RAW: ours["answers"][RAW]}
    refused = take(replace(order, expected=other))
    assert "another picture" in refused["failed"]


@pytest.mark.slow
def test_a_server_that_does_not_start_is_a_failure_with_its_words(order: Order) -> None:
    failed = take(replace(order, models="nowhere"))
    assert "the server" in failed["failed"]


def test_peers_answer_in_the_form_of_the_question(bodies: dict[str, list[bytes]]) -> None:
    function = common.Function(str(ROOT / "models/mnist/1/model.onnx"))
    picture, row, other = bodies[PNG][1], bodies[RAW][0], bodies[PNG][0]
    answers = function([picture, row, other])
    assert answers[0].startswith(common.PNG)
    assert len(answers[1]) == len(row)
    assert answers == [*function([picture]), *function([row]), *function([other])]
    assert function.base64([base64.b64encode(row)]) == [base64.b64encode(answers[1]).decode()]


def test_an_order_survives_json(order: Order) -> None:
    assert Order(**json.loads(json.dumps(asdict(order)))) == order
