import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from service.server.rejected_connections import (
    MANY_WAITING,
    MAX_CREDIT,
    READS_PER_RESPONSE,
    READS_PER_RESPONSE_OF_MANY,
    READS_PER_S,
    RejectedConnections,
)

FREE = int(MAX_CREDIT)


class Clients:
    """Clients that send the next request as soon as they may; every request is rejected. Time stands unless moved."""

    def __init__(self, number: int) -> None:
        self.now, self.read = 1000.0, list[int]()
        self._timers: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.rejected = RejectedConnections()
        for client in range(number):
            self.reject(client)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return cast(asyncio.AbstractEventLoop, self)

    def time(self) -> float:
        return self.now

    def call_later(self, _: float, callback: Callable[..., None], *arguments: Any) -> None:
        self._timers.append((callback, arguments))

    def reject(self, client: int, status: int = 503) -> None:
        if self.rejected.on_response(status, self.now):
            self.rejected.wait(lambda: self.read.append(client), self.loop)
        else:
            self.read.append(client)

    def answer(self, times: int = 1) -> list[int]:
        """Other requests are answered; returns who read on since the last look."""
        for _ in range(times):
            self.rejected.on_response(200, self.now)
        return self.taken()

    def pass_time(self, seconds: float) -> list[int]:
        """Time passes in one piece; returns who read on since the last look."""
        self.now += seconds
        timers, self._timers = self._timers, []
        for callback, arguments in timers:
            callback(*arguments)
        return self.taken()

    def taken(self) -> list[int]:
        read, self.read = self.read, []
        return read


def test_a_few_rejections_do_not_wait() -> None:
    assert Clients(FREE).read == list(range(FREE))


@pytest.mark.parametrize("status", [429, 503])
def test_further_ones_wait_for_other_responses_in_their_order(status: int) -> None:
    clients = Clients(FREE)
    clients.taken()
    for client in range(3 * READS_PER_RESPONSE):
        clients.reject(client, status)
    assert clients.taken() == []
    assert clients.answer() == list(range(READS_PER_RESPONSE))
    clients.reject(99, status)
    assert clients.answer(9) == [*range(READS_PER_RESPONSE, 3 * READS_PER_RESPONSE), 99]


def test_so_many_rejections_for_each_response_whatever_the_number_of_clients() -> None:
    """Every client comes back at once: the number of rejections follows from that of responses."""
    counts = []
    for number in (MANY_WAITING // 2, MANY_WAITING):
        clients = Clients(FREE + number)
        clients.taken()
        count = 0
        for _ in range(100):
            read = clients.answer()
            count += len(read)
            for client in read:
                clients.reject(client)
        counts.append(count)
    assert counts == [100 * READS_PER_RESPONSE] * 2


def test_a_crowd_gets_fewer_for_each_response() -> None:
    clients = Clients(FREE + MANY_WAITING + 10)
    clients.taken()
    responses = round(10 / READS_PER_RESPONSE_OF_MANY)
    assert len(clients.answer(responses // 2)) == 5
    assert len(clients.answer(responses // 2)) == 5
    assert len(clients.answer()) == READS_PER_RESPONSE


def test_without_other_responses_they_wait_for_their_time() -> None:
    clients = Clients(FREE + 100)
    clients.taken()
    assert clients.pass_time(10.5 / READS_PER_S) == list(range(FREE, FREE + 10))
    assert clients.pass_time(1e6) == list(range(FREE + 10, FREE + 100))
    assert clients.pass_time(1e6) == []  # and no timer runs while nobody waits
    assert not clients._timers


def test_a_quiet_time_earns_no_more_than_the_first_moment() -> None:
    clients = Clients(0)
    clients.answer(1000)
    clients.pass_time(1e6)
    for client in range(FREE + 1):
        clients.reject(client)
    assert len(clients.taken()) == FREE


@pytest.mark.parametrize("status", [200, 404, 422, 500, 504])
def test_other_responses_wait_for_nothing(status: int) -> None:
    assert not Clients(FREE + 1).rejected.on_response(status, 1000.0)
