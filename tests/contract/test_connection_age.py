"""Connections that end because of their age (IGN_MAX_CONNECTION_AGE_S): after a whole response, and
nothing is lost.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.load_generator.messages import post
from tests.contract.harness import Service, serving, settings
from tests.helpers.connection import Connection

GET = b"GET /models HTTP/1.1\r\nHost: ign\r\n\r\n"
AGE_S = 50.0  # below the time after which an idle connection is closed


GENERATE = post("/generate", {"seed": 1})


@pytest.fixture
def aged(models: Path) -> Iterator[Service]:
    with serving(settings(models, max_connection_age_s=AGE_S), loop="asyncio") as service:
        yield service


@pytest.fixture
def old(aged: Service) -> Iterator[Connection]:
    """A connection that is old at its second request."""
    headers = {"connection": "close"}
    with ExitStack() as stack:
        while "connection" in headers:  # it was old at its first, on a very busy machine
            connection = stack.enter_context(Connection(aged.address))
            _, headers, _ = connection.send(GET).answer()
        aged.skip(1.2 * AGE_S)
        yield connection


@pytest.mark.parametrize(
    "request_",
    [GET, GENERATE, post("/generate", {"seed": 1, "n": 64})],
    ids=["get", "small", "large"],
)
def test_an_old_connection_ends_after_a_whole_response_that_says_so(
    aged: Service, old: Connection, request_: bytes
) -> None:
    status, headers, body = old.send(request_).answer()
    assert (status, headers["connection"]) == (200, "close")
    assert json.loads(body)
    assert old.is_over()
    aged.until(lambda: aged.metric("ign_closed_connections_total", reason="age") >= 1)


def test_pipelined_requests_are_all_answered_before_it_ends(old: Connection) -> None:
    old.send(GENERATE + GET * 2)
    answers = [old.answer() for _ in range(3)]
    assert [status for status, _, _ in answers] == [200] * 3
    assert ["connection" in headers for _, headers, _ in answers] == [False, False, True]
    assert old.is_over()
