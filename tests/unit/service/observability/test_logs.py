import logging
import threading
from collections.abc import Iterator

import pytest

from service.observability import logs
from service.observability.logs import QueuedHandler


class Pipe(logging.Handler):
    """A target that blocks until it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = threading.Event()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.read.wait()
        self.lines.append(record.getMessage())


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.read.set()


def test_what_cannot_be_written_is_dropped_and_counted(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING", 10)
    monkeypatch.setattr(logs, "_FLUSH_S", 0.01)
    dropped: list[None] = []
    handler = QueuedHandler(pipe)
    handler.on_drop = lambda: dropped.append(None)
    for i in range(100):
        handler.handle(logging.makeLogRecord({"msg": str(i)}))
    assert 100 - 11 <= len(dropped) <= 100 - 10  # one may be with the target
    assert not handler.flushed()
    pipe.read.set()
    monkeypatch.setattr(logs, "_FLUSH_S", 10)
    assert handler.flushed()
    handler.handle(logging.makeLogRecord({"msg": "last"}))
    handler.close()
    assert pipe.lines[: 100 - len(dropped)] == [str(i) for i in range(100 - len(dropped))]
    assert str(len(dropped)) in pipe.lines[-2]
    assert pipe.lines[-1] == "last"
