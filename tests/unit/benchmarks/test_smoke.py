"""Every benchmark as a short run that shows it works."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.processes import ROOT
from benchmarks.harness.tables import render

PATIENCE_S = 900


def measured(module: str, results: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", f"benchmarks.{module}", "--quick", "--results", str(results), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "options", "targets"),
    [
        ("bench_scheduler", ["--seconds", "0.1", "--steps", "200", "--depth", "100"], 4),
        ("bench_service", ["--seconds", "0.2", "--overload-s", "0.3", "--connections", "2"], 15),
        ("bench_engine", [], 3),
        ("bench_instances", ["--seconds", "0.2"], 1),
        ("bench_workers", [], 0),
        ("bench_bulk", ["--pictures", "100"], 0),
        ("soak", ["--seconds", "2", "--workers", "2"], 3),
        ("reliability.campaign", ["--n", "10000"], 6),
        ("reliability.attacks", [], 24),
        ("reliability.restarts", [], 8),
        ("reliability.chaos", ["--clients", "32"], 6),
        ("reliability.chaos", ["--clients", "32", "--engine-process"], 3),
        ("reliability.storm", ["--seconds", "0.5", "--few", "8", "--many", "24"], 8),
    ],
)
def test_a_benchmark_runs(module: str, options: list[str], targets: int, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = measured(module, file, *options)
    assert done.returncode in (0, 1), done.stderr[-3000:]  # 1: missed targets, of the benchmarks of reliability
    found = json.loads(file.read_text(encoding="utf-8"))
    if done.returncode:  # rates need a quiet machine
        missed = [line["what"] for line in found["targets"] if not line["met"]]
        assert missed, done.stderr[-3000:]
        assert all(what.startswith("goodput") for what in missed), missed
    assert found == json.loads(done.stdout)
    assert found["method"]
    assert found["machine"]["processor"]
    assert len(found["targets"]) == targets
    assert render(found).count("\n| --- |") + render(found).count("\n| ---: |") >= 2
    assert str(ROOT) not in done.stdout


@pytest.mark.slow
def test_the_runtime_is_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.bench_runtime", "--sizes", "1", "2", "--seconds", "0.05"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert [line["rows"] for line in json.loads(done.stdout)["sizes"]] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("bench_scheduler", ["--models", "nowhere"]),
        ("bench_service", ["--models", "nowhere"]),
        ("bench_bulk", ["--models", "nowhere"]),
        ("bench_service", ["--setting", "NAME"]),
        ("soak", ["--seconds", "0"]),
        ("soak", ["--seconds", "9", "--flat-after", "5"]),
    ],
)
def test_a_bad_option_is_an_error(module: str, options: list[str], tmp_path: Path) -> None:
    done = measured(module, tmp_path / "found.json", *options)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "found.json").exists()
