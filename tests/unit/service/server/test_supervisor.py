import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.domain.errors import StartupError
from service.server import supervisor
from service.server.supervisor import Work, share_of, supervise
from service.settings import Settings
from tests.contract.harness import PATIENCE_S
from tests.helpers import worker_fakes


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # put back afterwards


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(workers=3, device="cpu", threads=7, queue_rows=100, max_inflight_requests=10, model_dir=tmp_path)


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
            assert said == (["listening"] if work in (worker_fakes.told_to_stop, worker_fakes.one_dies) else [])
            assert not any(folder.exists() for folder in folders)
    return status, ended


def pids(settings: Settings) -> set[int]:
    """Those that have said hello."""
    return {int(file.name) for file in settings.model_dir.iterdir() if file.stat().st_size}


def test_limits_are_divided_and_a_full_request_still_fits(settings: Settings) -> None:
    share = share_of(settings)
    assert (share.threads, share.max_inflight_requests, share.queue_rows) == (2, 4, 64)
    assert share.max_images == settings.max_images
    assert share_of(settings.replace(threads=1)).threads == 1


def test_they_run_until_stopped(settings: Settings) -> None:
    status, ended = supervised(settings, worker_fakes.told_to_stop, lambda: until(lambda: len(pids(settings)) == 3))
    assert status == 0
    assert set(ended) == pids(settings)
    assert {file.read_text() for file in settings.model_dir.iterdir()} == {"2 64"}


def test_one_that_dies_is_replaced(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    def script() -> None:
        until(lambda: len(pids(settings)) == 3)
        os.kill(min(pids(settings)), signal.SIGKILL)
        until(lambda: len(pids(settings)) == 4)

    status, ended = supervised(settings, worker_fakes.told_to_stop, script)
    assert status == 0
    assert ended[0] == min(pids(settings))
    assert set(ended) == pids(settings)
    assert f"process {ended[0]} ended with status -9; another takes its place" in caplog.text


def unattended(settings: Settings, work: Work) -> None:
    """Until it ends by itself."""
    supervise(settings, work, listening=lambda: None, forget=lambda *_: None)


def test_a_refusal_to_start_is_everybodys(settings: Settings) -> None:
    with pytest.raises(StartupError, match="no model in /nowhere"):
        unattended(settings, worker_fakes.refuses)


def test_a_refusal_of_one_that_replaces_another_too(settings: Settings) -> None:
    def script() -> None:
        until(lambda: len(pids(settings)) == 3)
        os.kill(min(pids(settings)), signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(script)
        with pytest.raises(StartupError, match="no model in /nowhere"):
            unattended(settings, worker_fakes.refuses_later)
        done.result(PATIENCE_S)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids(settings))


def test_one_that_stops_badly_is_seen_in_the_status(settings: Settings) -> None:
    status, _ = supervised(settings, worker_fakes.stops_badly, lambda: until(lambda: len(pids(settings)) == 3))
    assert status == 7


def noted(settings: Settings, what: str) -> dict[int, int]:
    """Processes `by_hand` that have come so far, and when."""
    lines = {pid: (settings.model_dir / str(pid)).read_text().split("\n") for pid in pids(settings)}
    return {pid: int(line.split()[1]) for pid, of in lines.items() for line in of[:-1] if line.startswith(what)}


def make_ready(settings: Settings, pid: int) -> None:
    os.kill(pid, signal.SIGUSR1)
    until(lambda: pid in noted(settings, "ready"))


def replaced(settings: Settings, pid: int) -> int:
    """Kill it and await the next: by then all that was said before has been heard."""
    before = pids(settings)
    os.kill(pid, signal.SIGKILL)
    until(lambda: len(pids(settings)) > len(before))
    return (pids(settings) - before).pop()


def begun(settings: Settings) -> tuple[int, list[int]]:
    """The one that opens the port, and the others."""
    until(lambda: len(pids(settings)) == 3 and bool(noted(settings, "told")))
    (first,) = noted(settings, "told")
    return first, sorted(pids(settings) - {first})


def test_nobody_listens_beside_one_that_loads(settings: Settings) -> None:
    def script() -> None:
        first, (second, third) = begun(settings)
        make_ready(settings, second)
        fourth = replaced(settings, third)
        assert set(noted(settings, "told")) == {first}
        make_ready(settings, first)
        until(lambda: second in noted(settings, "told"))
        fifth = replaced(settings, fourth)
        assert set(noted(settings, "told")) == {first, second}
        sixth = replaced(settings, second)
        for pid in (sixth, fifth):
            make_ready(settings, pid)
            until(lambda pid=pid: pid in noted(settings, "told"))  # type: ignore[misc]
        told, ready = noted(settings, "told"), noted(settings, "ready")
        assert told[first] < ready[first] < told[second]
        assert all(told[pid] > ready[pid] for pid in (second, fifth, sixth))

    assert supervised(settings, worker_fakes.by_hand, script)[0] == 0


def test_when_the_first_dies_before_it_is_ready_another_one_opens_the_port(settings: Settings) -> None:
    def script() -> None:
        first, others = begun(settings)
        replaced(settings, first)
        until(lambda: len(noted(settings, "told")) == 2)
        (second,) = set(noted(settings, "told")) - {first}
        (third,) = set(others) - {second}
        make_ready(settings, third)
        replaced(settings, second)  # it has not been ready either, but now there is one that is
        until(lambda: third in noted(settings, "told"))
        assert len(noted(settings, "told")) == 3

    assert supervised(settings, worker_fakes.by_hand, script)[0] == 0


def test_when_all_die_one_opens_the_port_at_once(settings: Settings) -> None:
    def script() -> None:
        first, _ = begun(settings)
        make_ready(settings, first)
        for pid in pids(settings):
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(pids(settings)) == 6 and len(noted(settings, "told")) > 1)

    assert supervised(settings, worker_fakes.by_hand, script)[0] == 0


def pauses(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().partition("takes its place")[2] for record in caplog.records]


@pytest.fixture
def alone(settings: Settings) -> Settings:
    return settings.replace(workers=1)


def test_it_gives_up_when_none_gets_ready(
    alone: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_PAUSE_S", 0.001)
    with pytest.raises(StartupError, match="5 processes in a row did not last, the last one ended with status 5"):
        unattended(alone, worker_fakes.dies)
    assert pauses(caplog) == ["", " in 0.001 s", " in 0.002 s", " in 0.004 s"]


def test_it_does_not_give_up_while_one_serves(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_PAUSE_S", 0.001)
    two = settings.replace(workers=2)
    status, _ = supervised(two, worker_fakes.one_dies, lambda: until(lambda: len(pauses(caplog)) > 5))
    assert status in (0, 5)


def test_one_that_dies_again_and_again_is_replaced_after_a_pause_that_grows_to_a_bound(
    alone: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_PAUSE_S", 0.001)
    monkeypatch.setattr(supervisor, "_MAX_PAUSE_S", 0.003)
    supervised(alone, worker_fakes.dies_later, lambda: until(lambda: len(pauses(caplog)) > 6))
    assert pauses(caplog)[:6] == ["", " in 0.001 s", " in 0.002 s", " in 0.003 s", " in 0.003 s", " in 0.003 s"]


def test_one_that_has_served_for_long_is_replaced_at_once(
    alone: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_LASTING_S", 0.0)
    supervised(alone, worker_fakes.dies_later, lambda: until(lambda: len(pauses(caplog)) > 3))
    assert set(pauses(caplog)) == {""}


def test_a_signal_ends_the_pause(
    alone: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_PAUSE_S", 3600.0)
    monkeypatch.setattr(supervisor, "_MAX_PAUSE_S", 3600.0)
    status, ended = supervised(alone, worker_fakes.dies, lambda: until(lambda: " in 3600 s" in pauses(caplog)))
    assert (status, len(ended)) == (0, 2)
