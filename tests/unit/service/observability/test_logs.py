import logging
import threading

import pytest

from service.observability import logs
from service.observability.logs import QueuedHandler, TraceContext, parse_traceparent


class Pipe(logging.Handler):
    """A target that blocks until it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = threading.Event()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.read.wait()
        self.lines.append(record.getMessage())


def test_what_cannot_be_written_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING", 10)
    monkeypatch.setattr(logs, "_FLUSH_S", 0.01)
    pipe, dropped = Pipe(), list[None]()
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


TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (GIVEN, 1),
        (f" {GIVEN}\t", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-03", 3),  # the random flag of level 2
        (f"00-{TRACE}-{SPAN}-ff", 3),
        (f"cc-{TRACE}-{SPAN}-01", 1),  # a later version
        (f"cc-{TRACE}-{SPAN}-01-what-else", 1),
        (f"01-{TRACE}-{SPAN}-01-", 1),
    ],
)
def test_a_valid_position_is_taken(value: str, flags: int) -> None:
    found = parse_traceparent([value])
    assert found == TraceContext(TRACE, SPAN, flags)
    assert found.sampled == (flags > 0)
    assert found.traceparent == f"00-{TRACE}-{SPAN}-0{flags}"


INVALID = "ff-T-S-01 00-T-S-01-x cc-T-S-01x 00-T-S 0-T-S-01 00-t-S-01 00-T0-S-01 ٠٠-T-S-01"


@pytest.mark.parametrize(
    "values",
    [
        [],
        [GIVEN, GIVEN],
        [f"{GIVEN}, {GIVEN}"],
        *([form.replace("T", TRACE).replace("S", SPAN).replace("t", TRACE.upper())] for form in INVALID.split()),
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
    ],
)
def test_anything_else_is_ignored(values: list[str]) -> None:
    assert parse_traceparent(values) is None
