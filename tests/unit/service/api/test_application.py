import asyncio

from service.domain.accounts import UNLIMITED, InFlightRequests


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
