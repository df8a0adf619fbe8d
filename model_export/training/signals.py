"""Signals that stop a training."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signal(answer: Callable[[], str]) -> Iterator[None]:
    """Answer SIGINT and SIGTERM inside the block: ``answer`` is called in the main thread between
    two operations, and its line written to stderr. A second one ends the process.
    """

    def handle(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        # Not `print`: the signal may have interrupted a write to the same buffer.
        os.write(2, f"\n{answer()}\n".encode())

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
