import dataclasses
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.domain.errors import StartupError
from service.settings import Settings
from service.supervisor import Work, share_of, supervise
from tests.contract.harness import PATIENCE_S
from tests.service import crews


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # put back afterwards


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(workers=3, device="cpu", threads=7, queue_rows=100, max_connections=10, model_dir=tmp_path)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def supervised(settings: Settings, work: Work, script: Callable[[], None]) -> tuple[int, list[int]]:
    """Run the crew here, where signals arrive, and the script beside it; (status, processes that ended)."""
    ended: list[int] = []
    said: list[str] = []
    folders: set[Path] = set()

    def forget(pid: int, folder: Path) -> None:
        assert folder.is_dir()
        folders.add(folder)
        ended.append(pid)

    def run() -> None:
        try:
            script()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # one that comes early or late ends nothing else
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run)
        try:
            status = supervise(settings, work, listening=lambda: said.append("listening"), forget=forget)
        finally:
            done.result(PATIENCE_S)
            signal.signal(signal.SIGTERM, before)
            assert said == (["listening"] if work is crews.told_to_stop else [])
            assert not any(folder.exists() for folder in folders)
    return status, ended


def pids(settings: Settings) -> set[int]:
    """Those that have said hello."""
    return {int(file.name) for file in settings.model_dir.iterdir() if file.stat().st_size}


def test_limits_are_divided_and_a_full_request_still_fits(settings: Settings) -> None:
    share = share_of(settings)
    assert (share.threads, share.max_connections, share.queue_rows) == (2, 4, 64)
    assert share.max_images == settings.max_images
    assert share_of(dataclasses.replace(settings, threads=1)).threads == 1


def test_they_run_until_stopped(settings: Settings) -> None:
    status, ended = supervised(settings, crews.told_to_stop, lambda: until(lambda: len(pids(settings)) == 3))
    assert status == 0
    assert set(ended) == pids(settings)
    assert {file.read_text() for file in settings.model_dir.iterdir()} == {"2 64"}


def test_one_that_dies_is_replaced(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    def script() -> None:
        until(lambda: len(pids(settings)) == 3)
        os.kill(min(pids(settings)), signal.SIGKILL)
        until(lambda: len(pids(settings)) == 4)

    status, ended = supervised(settings, crews.told_to_stop, script)
    assert status == 0
    assert ended[0] == min(pids(settings))
    assert set(ended) == pids(settings)
    assert f"process {ended[0]} ended with status -9; another takes its place" in caplog.text


def test_a_refusal_to_start_is_everybodys(settings: Settings) -> None:
    with pytest.raises(StartupError, match="no model in /nowhere"):
        supervised(settings, crews.refuses, lambda: None)


def test_one_that_stops_badly_is_seen_in_the_status(settings: Settings) -> None:
    status, _ = supervised(settings, crews.stops_badly, lambda: until(lambda: len(pids(settings)) == 3))
    assert status == 7
