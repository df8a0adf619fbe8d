"""Signals that stop a training."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Catch SIGINT and SIGTERM inside the block. Yields whether one has arrived; a second one ends
    the process.
    """
    received = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal received
        received = True
        signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
