"""How a run reports its progress, on a terminal and elsewhere."""

import io
import logging
import sys

import pytest

from service.bulk.run import Progress, ShardPlan

GOOD = {"error": None, "detail": None}
PLAN = ShardPlan(images=1000, shards=10, missing=tuple(range(2, 10)), completed=200)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_for_each_shard_without_a_terminal(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "service.bulk"):
        progress = Progress(PLAN)
        progress.update([GOOD] * 100)
        progress.update([GOOD] * 50 + [{"error": "unreadable", "detail": f"{n}.png: bad"} for n in range(50)])
    lines = [line for line in caplog.messages if "/1000" in line]
    assert lines == ["300/1000 images, 0 failed", "400/1000 images, 50 failed"]
    failed = [line for line in caplog.messages if line.endswith(".png: bad")]
    assert failed == [f"{n}.png: bad" for n in range(20)]
    assert "manifest" in caplog.text
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(PLAN)
    progress.update([GOOD] * 800)
    progress.bar.close()
    assert "1000/1000" in terminal.getvalue()
