"""Captures of CUDA graphs, which nothing else in the process may disturb.

onnxruntime captures in CUDA's global mode: while one thread captures, whatever another one allocates, copies or frees
fails, on any device (error 900), and takes the capture with it. So whoever captures is alone, and all others together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class CudaGraphLock:
    """Any number of threads use devices together, or one of them captures alone; it waits for them, and they for it.

    Neither may be asked for by a thread that has one of them already.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._users = 0
        self._waiting = 0
        self._capturing = False

    @property
    def capturing(self) -> bool:
        """Whether somebody captures."""
        return self._capturing

    @contextmanager
    def together(self) -> Iterator[None]:
        """Use a device, except to capture."""
        with self._changed:
            # Who waits to capture goes first: there may always be somebody who uses a device.
            self._changed.wait_for(lambda: not (self._capturing or self._waiting))
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Capture."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not (self._capturing or self._users))
                self._capturing = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()  # if it was interrupted, nobody waits for it any more
        try:
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()


CAPTURES = CudaGraphLock()
"""Those of this process."""
