"""An event loop whose timers fire by a clock of the test."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class TimedLoop(asyncio.SelectorEventLoop):
    """A loop with a clock that can be replaced; its timers are looked at whenever it runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        super().__init__()

    def time(self) -> float:
        return self.clock()


def run_timed(main: Coroutine[Any, Any, T], clock: Callable[[], float] = time.monotonic) -> T:
    """`asyncio.run` with a clock."""
    with asyncio.Runner(loop_factory=partial(TimedLoop, clock)) as runner:
        return runner.run(main)
