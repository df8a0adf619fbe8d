"""Write the log in a thread of its own, so that a pipe that nobody reads does not stop the service."""

import logging
import threading
from collections.abc import Callable
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Any, Final

MAX_WAITING: Final = 10_000
"""Lines that may wait to be written, some megabytes; further ones are dropped."""
_FLUSH_S: Final = 1.0


def _nothing() -> None:
    pass


class QueuedHandler(QueueHandler):
    """Passes records to another handler in a thread; beyond `MAX_WAITING` it drops them.

    Args:
        target: writes the records.
    """

    def __init__(self, target: logging.Handler) -> None:
        waiting: SimpleQueue[Any] = SimpleQueue()
        super().__init__(waiting)
        self.on_drop: Callable[[], None] = _nothing
        """Called for each dropped line."""
        self._waiting = waiting
        self._dropped = 0
        self._writer = _Writer(waiting, target)
        self._writer.start()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Leave the formatting to the thread; `QueueHandler` formats here, for queues between processes."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue the record, or count it; when there is room again, a line says how many are missing."""
        waiting = self._waiting.qsize()
        if waiting >= MAX_WAITING:
            self._dropped += 1
            self.on_drop()
            return
        if self._dropped and waiting < MAX_WAITING // 2:
            text = f"{self._dropped} lines of the log were dropped because they could not be written in time"
            self._dropped = 0
            self._waiting.put(logging.LogRecord("service", logging.WARNING, __file__, 0, text, None, None))
        self._waiting.put(record)

    def flush(self) -> None:
        """Wait until everything is written, but at most a second."""
        self.flushed()

    def flushed(self) -> bool:
        """Whether everything was written within a second."""
        written = threading.Event()
        self._waiting.put(written)
        return written.wait(_FLUSH_S)

    def close(self) -> None:
        """Write what waits, and end the thread if it can write."""
        if self.flushed():
            self._writer.stop()
        super().close()


class _Writer(QueueListener):
    def handle(self, record: Any) -> None:
        if isinstance(record, threading.Event):
            record.set()
        else:
            super().handle(record)


def flush_log() -> bool:
    """Whether every line of the log could be written; waits at most a second for each handler."""
    return all(handler.flushed() for handler in _handlers())


def count_drops(on_drop: Callable[[], None]) -> None:
    """Call ``on_drop`` for each line of the log that is dropped from now on."""
    for handler in _handlers():
        handler.on_drop = on_drop


def _handlers() -> list[QueuedHandler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, QueuedHandler)]
