"""Every benchmark as a short run that shows it works, and the processes that it starts."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import processes
from benchmarks.harness.processes import ROOT
from benchmarks.harness.tables import render

pytestmark = pytest.mark.slow
# Targets that a busy machine misses: rates, latencies, and what does not fit into the time of a
# drain.
NEEDS_TIME = re.compile(
    "goodput|lost requests|slowest|outside outages|p99|health|normal after|growth|cpu_s|wait_s"
)


def measured(module: str, results: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [
        sys.executable,
        "-m",
        f"benchmarks.{module}",
        "--results",
        str(results),
        *options,
    ]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.parametrize(
    ("command", "targets"),
    [
        ("bench_path --rounds 1", 3),
        ("bench_scheduler --rounds 1 --seconds 0.1 --depth 100", 3),
        ("bench_service --device cpu --rounds 1 --seconds 0.2 --connections 2", 7),
        ("bench_peers --copies 1 --rounds 1 --seconds 0.3 --connections 4", 6),
        ("reliability.soak --seconds 2 --clients 2", 3),
        ("reliability.campaign --n 1000", 5),
        ("reliability.files --n 90", 4),
        ("reliability.fairness --seconds 3 --attacks '/healthz pipelined' --callers address", 5),
        ("reliability.costs --seconds 1 --attacks '12 impossible shapes'", 2),
        ("reliability.restarts --reloads 2 --stops 1", 14),
        ("reliability.chaos --seconds 10 --clients 16", 6),
        ("reliability.storm --rounds 1 --seconds 0.5 --few 8 --many 24", 8),
    ],
)
def test_a_benchmark_runs(command: str, targets: int, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    (module, *options) = shlex.split(command)
    done = measured(module, file, *options)
    if "cannot be installed" in done.stderr:
        pytest.skip(done.stderr)
    # 1: missed targets, of the benchmarks of reliability
    assert done.returncode in (0, 1), done.stderr[-3000:]
    result = json.loads(file.read_text(encoding="utf-8"))
    missed = [line["what"] for line in result["targets"] if not line["met"] and done.returncode]
    assert all(NEEDS_TIME.search(what) for what in missed), missed
    assert result == json.loads(done.stdout)
    assert result["method"]
    assert len(result["targets"]) == targets
    assert "\n| ---" in render(result)
    assert str(ROOT) not in done.stdout


def test_what_cannot_be_measured_is_an_error(tmp_path: Path) -> None:
    done = measured("bench_service", tmp_path / "result.json", "--device", "nowhere")
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("command", "reason"),
    [(["sh", "-c", "echo no; exit 1"], r"(?s)status 1.*no"), (["sleep", "60"], "not ready")],
)
def test_a_server_that_does_not_start_says_why(command: list[str], reason: str) -> None:
    with (
        pytest.raises(processes.ServerFailed, match=reason),
        processes.serving(command, port=processes.free_port(), ready="/", start_s=1.0),
    ):
        raise AssertionError
