"""Every benchmark as a short run that shows it works, and the processes that it starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import processes
from benchmarks.harness.processes import ROOT
from benchmarks.harness.tables import render

PATIENCE_S = 900
pytestmark = pytest.mark.slow


def measured(module: str, results: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", f"benchmarks.{module}", "--quick", "--results", str(results), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize(
    ("module", "options", "targets"),
    [
        ("bench_runtime", ["--sizes", "1", "2"], 1),
        ("bench_scheduler", ["--seconds", "0.1", "--depth", "100"], 3),
        ("bench_service", ["--seconds", "0.2", "--overload-s", "0.3", "--connections", "2"], 15),
        ("bench_processes", ["--seconds", "0.2"], 1),
        ("bench_peers", ["--seconds", "0.3", "--connections", "4", "--only", "fastapi", "--headers", "gateway"], 2),
        ("reliability.soak", ["--seconds", "2", "--clients", "2"], 3),
        ("reliability.campaign", ["--n", "10000"], 6),
        ("reliability.attacks", [], 24),
        ("reliability.restarts", [], 8),
        ("reliability.chaos", ["--clients", "32"], 6),
        ("reliability.storm", ["--seconds", "0.5", "--few", "8", "--many", "24"], 8),
    ],
)
def test_a_benchmark_runs(module: str, options: list[str], targets: int, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    done = measured(module, file, *options)
    assert done.returncode in (0, 1), done.stderr[-3000:]  # 1: missed targets, of the benchmarks of reliability
    result = json.loads(file.read_text(encoding="utf-8"))
    if done.returncode:  # rates need a quiet machine
        missed = [line["what"] for line in result["targets"] if not line["met"]]
        assert missed, done.stderr[-3000:]
        assert all(what.startswith("goodput") for what in missed), missed
    assert result == json.loads(done.stdout)
    assert result["method"]
    assert result["machine"]["processor"]
    assert len(result["targets"]) == targets
    assert render(result).count("\n| --- |") + render(result).count("\n| ---: |") >= 1
    assert not result.get("skipped")
    assert str(ROOT) not in done.stdout


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("bench_scheduler", ["--models", "nowhere"]),
        ("bench_service", ["--models", "nowhere"]),
        ("bench_service", ["--setting", "NAME"]),
        ("bench_peers", ["--headers", "nobody"]),
        ("bench_runtime", ["--model", "nowhere/model.onnx"]),
        ("reliability.soak", ["--seconds", "0"]),
    ],
)
def test_a_bad_option_is_an_error(module: str, options: list[str], tmp_path: Path) -> None:
    done = measured(module, tmp_path / "result.json", *options)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "result.json").exists()


FILES = "import http.server as s, sys; s.test(s.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"


def test_a_server_is_started_awaited_and_stopped() -> None:
    port = processes.free_port()
    with processes.serving([sys.executable, "-c", FILES, str(port)], port=port, ready="/README.md") as server:
        assert server.get("/README.md")[0] == 200
        assert server.get("/nothing")[0] == 404
        assert processes.rss_mib(server.pid) > 1
        assert "GET /nothing" in server.log_text()
    assert server.status == -15
    with pytest.raises(OSError, match="refused"):
        server.get("/")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit('no')", r"(?s)status 1.*no"),
        ("import threading; threading.Event().wait()", "not ready within"),
    ],
)
def test_a_server_that_does_not_start_says_why(code: str, reason: str) -> None:
    command, port = [sys.executable, "-c", code], processes.free_port()
    with (
        pytest.raises(processes.ServerFailed, match=reason),
        processes.serving(command, port=port, ready="/", start_s=1.0),
    ):
        raise AssertionError


def test_cpu_time_and_memory_include_descendants() -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True); input()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    command = [sys.executable, "-c", nested]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        parent, descendant = processes.process_tree(child.pid)
        assert parent == child.pid
        # A lower bound only: how much more a process uses depends on the machine.
        assert processes.cpu_seconds(child.pid) >= processes.cpu_seconds(descendant) >= 0.25
        assert processes.rss_mib(child.pid) > processes.rss_mib(descendant) > 0
        child.communicate("")
    assert processes.cpu_seconds(child.pid) == processes.rss_mib(child.pid) == 0
