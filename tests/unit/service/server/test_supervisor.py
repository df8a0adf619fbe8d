import errno
import itertools
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from service.domain.errors import StartupError
from service.server import process
from service.server.process import ChildMain, per_process_settings, supervise
from service.settings import Settings
from tests.helpers import live
from tests.helpers import server_process_fakes as fakes
from tests.helpers.connection import PATIENCE_S


@pytest.fixture(autouse=True)
def _own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`supervise` changes the environment and the signal handlers of its process, which here is
    pytest's.
    """
    monkeypatch.setenv("_IGN_METRICS_FILE", "")
    monkeypatch.setattr(process, "_RESTART_INTERVAL_S", 0.05)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """No process is left in the end."""
    settings = Settings(
        workers=2,
        device="cpu",
        threads=5,
        queue_rows=100,
        max_inflight_requests=10,
        model_dir=tmp_path,
    )
    yield settings
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids(settings))


@dataclass
class Clock:
    """The time of the supervisor; none passes but by `skip` if it stands still."""

    skipped: float = 0.0
    looks: int = 0
    stands_still: bool = False

    def monotonic(self) -> float:
        self.looks += 1
        return self.skipped + (0.0 if self.stands_still else time.monotonic())

    def skip(self, seconds: float) -> None:
        """Let time pass, and the supervisor look several times."""
        self.skipped += seconds
        looks = self.looks
        until(lambda: self.looks > looks + 20)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(process, "time", clock)
    return clock


def until(condition: Callable[[], bool]) -> None:
    live.until(condition, lambda: "it never came")


def pids(settings: Settings) -> set[int]:
    """The processes that have started, dead ones included."""
    files = [file for file in settings.model_dir.iterdir() if file.name.isdigit()]
    return {int(file.name) for file in files if file.stat().st_size}


def started(settings: Settings, count: int) -> Callable[[], None]:
    return lambda: until(lambda: len(pids(settings)) >= count)


def supervised(
    settings: Settings, main: ChildMain, script: Callable[[], None], number: int = signal.SIGTERM
) -> int:
    """Supervise in this thread, where signals arrive, with the script in another; then send the
    signal.
    """

    def run() -> None:
        try:
            script()
        finally:
            os.kill(os.getpid(), number)

    listening: list[bool] = []
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run)
        try:
            return supervise(settings, main, on_listening=lambda: listening.append(True))
        finally:
            done.result(PATIENCE_S)
            assert len(listening) == (main is not fakes.dies)


def test_limits_are_divided_and_a_full_request_still_fits(settings: Settings) -> None:
    settings = settings.replace(workers=3, threads=7)
    share = per_process_settings(settings)
    assert (share.threads, share.max_inflight_requests, share.queue_rows) == (2, 4, 64)
    assert share.max_images == settings.max_images
    assert share.max_inflight_bytes == math.ceil(settings.max_inflight_bytes / 3)
    assert (
        per_process_settings(settings.replace(max_inflight_bytes=2**24)).max_inflight_bytes == 2**24
    )
    assert per_process_settings(settings.replace(threads=1)).threads == 1


@pytest.mark.parametrize(("served_s", "factors"), [(60.0, [1, 2, 3, 3]), (0.0, [1, 1, 1, 1])])
def test_a_process_that_dies_again_and_again_is_restarted_after_a_pause(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    clock: Clock,
    served_s: float,
    factors: list[int],
) -> None:
    """The pause grows, until a process has served for a while."""
    monkeypatch.setattr(process, "_RESTART_INTERVAL_S", 0.125)
    monkeypatch.setattr(process, "_MAX_INTERVALS", 3)
    monkeypatch.setattr(process, "_SERVED_S", served_s)
    clock.stands_still = True

    def pauses() -> list[str]:
        return re.findall(r"next start ([0-9.]+) s after", caplog.text)

    def died(times: int) -> Callable[[], bool]:
        return lambda: len(pauses()) == times

    def script() -> None:
        for number, factor in enumerate(factors, 1):
            until(died(number))
            clock.skip(0.125 * factor - 0.01)
            assert len(pids(settings)) == number
            clock.skipped += 0.02
        started(settings, 5)()

    assert supervised(settings.replace(workers=1), fakes.serves_shortly, script) in (0, 5)
    assert pauses()[:4] == [f"{0.125 * each:g}" for each in factors]


def test_processes_that_all_die_before_they_listen_end_the_service(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_MOST_FAILURES", 2)
    monkeypatch.setattr(process, "_MAX_INTERVALS", 1)
    refused(settings, fakes.dies, "died 4 times in a row before one served")


def test_as_long_as_one_serves_the_others_may_die_or_refuse_to_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_MOST_FAILURES", 1)
    assert supervised(settings, fakes.serves_alone, started(settings, 5)) in (0, 5)


def test_a_supervisor_that_was_stopped_kills_nobody(settings: Settings, clock: Clock) -> None:
    """Beats wait in the pipes meanwhile, and its own pause is no silence of a process that
    starts.
    """

    def script() -> None:
        clock.skip(1000.0)
        started(settings, 2)()
        clock.skip(1000.0)
        assert len(pids(settings)) == 2

    assert supervised(settings, fakes.serves, script) == 0


def failing_starts(monkeypatch: pytest.MonkeyPatch, *failing: int) -> None:
    """Let some starts of processes fail, by their number."""
    start = SpawnProcess.start
    numbers = itertools.count()

    def started_or_not(self: SpawnProcess) -> None:
        if next(numbers) in failing:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        start(self)

    monkeypatch.setattr(SpawnProcess, "start", started_or_not)


@pytest.mark.parametrize("what", ["folder", "process"])
def test_without_a_folder_or_processes_it_does_not_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "process":
        failing_starts(monkeypatch, 1)
    else:
        error = FileNotFoundError(errno.ENOENT, "Resource temporarily unavailable")
        monkeypatch.setattr("tempfile.TemporaryDirectory", Mock(side_effect=error))
    refused(settings, fakes.serves, "Resource temporarily unavailable")


def refused(settings: Settings, main: ChildMain, message: str) -> None:
    with pytest.raises(StartupError, match=message):
        supervise(settings, main, on_listening=lambda: None)


def test_a_process_that_does_not_start_stops_all(settings: Settings) -> None:
    refused(settings, fakes.refuses, "no model in /nowhere")


def test_a_replacement_that_cannot_be_started_is_tried_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_starts(monkeypatch, 2, 3)

    def script() -> None:
        started(settings, 2)()
        os.kill(min(pids(settings)), signal.SIGKILL)
        started(settings, 3)()

    assert supervised(settings, fakes.serves, script) == 0


def folders(settings: Settings, file: str) -> list[Path]:
    """Of the processes of `fakes.changes` that have written this file."""
    return [each.parent for each in settings.model_dir.glob(f"process-*/{file}")]


def ask(settings: Settings, change: str) -> Path:
    """Have one of the processes ask for a change; its folder."""
    (settings.model_dir / "draft").write_text(change)
    (settings.model_dir / "draft").rename(settings.model_dir / "ask")
    until(
        lambda: any((each / "asked").read_text() == change for each in folders(settings, "asked"))
    )
    return next(
        each for each in folders(settings, "asked") if (each / "asked").read_text() == change
    )


def answer(asker: Path) -> str:
    until(lambda: (asker / "answer").exists() and (asker / "answer").read_text() != "")
    said = (asker / "answer").read_text()
    (asker / "answer").unlink()
    return said


def kill(folder: Path) -> None:
    os.kill(int(folder.name.removeprefix("process-")), signal.SIGKILL)


def test_a_process_that_dies_holds_up_no_change(settings: Settings) -> None:
    def script() -> None:
        started(settings, 2)()
        asker = ask(settings, "unload stuck")
        until(lambda: len(folders(settings, "stuck")) == 2)
        (other,) = set(folders(settings, "stuck")) - {asker}
        assert not (asker / "answer").exists()
        kill(other)
        assert answer(asker) == "7 None"
        started(settings, 3)()
        (new,) = set(folders(settings, "unloaded")) - {asker, other}
        assert (new / "unloaded").read_text() == "stuck"

    assert supervised(settings, fakes.changes, script) == 0
