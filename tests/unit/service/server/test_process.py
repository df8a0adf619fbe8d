"""How a serving process starts and ends when something in or around it is stuck."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.contract.harness import PATIENCE_S
from tests.helpers.live import environment, free_port
from tests.helpers.onnx_models import write_model

STUCK = """
import threading, time
from service.cli import serve
from service.models.repository import Repository
from service.server.process import leave
{line}
leave(serve({{}}))
"""
BUSY_THREAD = "threading.Thread(target=time.sleep, args=(600,)).start()"
BUSY_EXECUTOR = "Repository.load_all = lambda _: time.sleep(600)"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_model(tmp_path / "models")
    return tmp_path / "models"


@contextmanager
def started(models: Path, *command: str, **settings: str) -> Iterator["subprocess.Popen[str]"]:
    ours = {"IGN_MODEL_DIR": str(models), "IGN_DEFAULT_MODEL": "toy", "IGN_DEVICE": "cpu", "IGN_PORT": "0"}
    process = subprocess.Popen(command, env=environment(**(ours | settings)), stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def url_of(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"listening on (\S+)", line):
            return found[1]
    raise AssertionError("it never listened")


def answered(url: str, path: str, status: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if httpx.get(url + path, timeout=5).status_code == status:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline


@pytest.mark.parametrize("line", [BUSY_THREAD, BUSY_EXECUTOR])
@pytest.mark.parametrize("signals", [1, 2])
def test_it_ends_although_a_thread_does_not(models: Path, line: str, signals: int) -> None:
    drain = "1" if signals == 1 else "600"
    port = free_port()
    code = STUCK.format(line=line)
    with started(models, sys.executable, "-c", code, IGN_DRAIN_S=drain, IGN_PORT=str(port)) as process:
        answered(f"http://127.0.0.1:{port}", "/healthz", 200)
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert process.wait(PATIENCE_S / 2) == 0


def test_further_signals_do_not_change_the_status(models: Path) -> None:
    code = STUCK.format(line=BUSY_EXECUTOR)
    port = free_port()
    with started(models, sys.executable, "-c", code, IGN_DRAIN_S="1", IGN_PORT=str(port)) as process:
        answered(f"http://127.0.0.1:{port}", "/healthz", 200)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert process.returncode == 0


def test_a_log_that_nobody_reads_stops_nothing(models: Path) -> None:
    with started(models, sys.executable, "-m", "service") as process:
        url = url_of(process)  # from here on nobody reads
        answered(url, "/readyz", 200)
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            for _ in range(1500):  # 90 bytes each; a pipe holds 64 KiB
                assert client.get("/healthz").status_code == 200
            assert "ign_dropped_log_lines_total 0.0" in client.get("/metrics").text
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("files", [20, 40])
def test_too_few_open_files_are_one_line(models: Path, files: int) -> None:
    with started(models, "sh", "-c", f"ulimit -n {files}; exec {sys.executable} -m service") as process:
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 2
        assert said.splitlines() == [
            f"ign-service does not start: only {files} files may be open (ulimit -n); the service needs 64"
        ]


def test_the_soft_limit_of_open_files_is_raised(models: Path) -> None:
    command = f"ulimit -Sn 128; ulimit -Hn 512; exec {sys.executable} -m service"
    with started(models, "sh", "-c", command, IGN_MAX_OPEN_CONNECTIONS="1000") as process:
        url = url_of(process)
        metrics = httpx.get(url + "/metrics").text
        assert "process_max_fds 512.0" in metrics
        assert "ign_open_connections_limit 256.0" in metrics
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert re.search(r"Max open files +512 +512 ", limits)
