"""A lock around captures of CUDA graphs, which no other use of a device may overlap.

onnxruntime captures in CUDA's global mode. While one thread captures, any allocation, copy or release by another thread
fails, on any device (error 900), and invalidates the capture. So a capture needs exclusive access, and all other uses
of a device share access.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class CudaGraphLock:
    """A readers–writer lock: any number of threads use devices, or one thread captures a graph.

    Not reentrant: a thread that has either access must not ask for another one.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._users = 0
        self._waiting_captures = 0
        self._capturing = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Access for every use of a device other than a capture."""
        with self._changed:
            # Waiting captures go first. Otherwise they could wait for ever, as there may always be some user.
            self._changed.wait_for(lambda: not (self._capturing or self._waiting_captures))
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Access for a capture."""
        with self._changed:
            self._waiting_captures += 1
            try:
                self._changed.wait_for(lambda: not (self._capturing or self._users))
                self._capturing = True
            finally:
                self._waiting_captures -= 1
                self._changed.notify_all()  # if the wait was interrupted, users need no longer wait for this capture
        try:
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()


GRAPH_LOCK = CudaGraphLock()
"""The lock of this process."""
