import asyncio

import pytest

from service.api.app_state import InFlightRequests
from service.domain.accounts import UNLIMITED, Capacity
from service.domain.errors import OverShare, TooLarge, TooManyBytes


def test_a_request_that_needs_more_than_there_is_is_too_large() -> None:
    in_flight = InFlightRequests(UNLIMITED, Capacity.of(100))
    epoch = in_flight.enter("a")
    in_flight.hold("a", 0, 95)
    with pytest.raises(TooLarge):  # at once, not after the other requests
        in_flight.hold("a", 95, 6)
    with pytest.raises((TooManyBytes, OverShare)):
        in_flight.hold("b", 0, 90)
    in_flight.leave(epoch, "a", 95)
    in_flight.hold("b", 0, 90)


def test_wait_for_current_waits_for_earlier_requests_only() -> None:
    async def main() -> None:
        in_flight = InFlightRequests(UNLIMITED, UNLIMITED)
        await asyncio.wait_for(in_flight.wait_for_current(), 5)
        first = in_flight.enter("a")
        one = asyncio.create_task(in_flight.wait_for_current())
        await asyncio.sleep(0)
        second = in_flight.enter("a")
        two = asyncio.create_task(in_flight.wait_for_current())
        await asyncio.sleep(0)
        third = in_flight.enter("a")
        in_flight.leave(second, "a", 0)
        await asyncio.sleep(0)
        assert not one.done()
        assert not two.done()  # the first was there before it, too
        in_flight.leave(first, "a", 0)
        await asyncio.wait_for(asyncio.gather(one, two), 5)
        assert in_flight.count == 1
        in_flight.leave(third, "a", 0)
        await asyncio.wait_for(in_flight.idle(), 5)

    asyncio.run(main())
