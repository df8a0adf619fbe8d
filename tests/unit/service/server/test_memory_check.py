"""The net below the rule that requests create no reference cycles."""

import gc
import weakref

from service.server.uvicorn_server import MemoryCheck

MIB = 2**20


class Cycle:
    """An object that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


def test_what_no_request_accounts_for_is_collected() -> None:
    resident = [300 * MIB]
    check = MemoryCheck(lambda: resident[0])
    gc.disable()
    try:
        lost = weakref.ref(Cycle())
        for resident[0], accounted in ((450 * MIB, 0), (900 * MIB, 450 * MIB)):
            check.check(accounted)
            assert lost() is not None
        resident[0] = 900 * MIB
        check.check(0)
        assert lost() is None
        lost = weakref.ref(Cycle())
        check.check(0)  # what is left is what models take
        assert lost() is not None
    finally:
        gc.enable()
