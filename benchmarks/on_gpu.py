"""Run the GPU tests, the GPU benchmark and its tables in less than ten minutes.

    python -m benchmarks.on_gpu --out runs/gpu

The folder gets the output of each part, and `gpu.json`. Each part has a time limit, and a failed part does not stop the
next one. Exit status 1 means that a part failed or timed out, or that there is no GPU.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.harness.processes import ROOT

LIMITS: Final = {"tests": 200.0, "benchmark": 360.0, "tables": 20.0}
"""Time limits in seconds; the sum is less than ten minutes."""


def main() -> int:
    options = parser().parse_args()
    out = Path(options.out).resolve()
    result = out / "gpu.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)  # of an earlier run
    except OSError as exc:
        print(f"error: --out {options.out}: {exc.strerror}", file=sys.stderr)
        return 2
    commands = {
        "tests": ["-m", "pytest", "-m", "gpu", "--durations=10", "tests/gpu"],
        "benchmark": ["-m", "benchmarks.bench_gpu", "--results", str(result), *shlex.split(options.benchmark)],
        "tables": ["-m", "benchmarks.harness.tables", str(result)],
    }
    went = [run(part, [sys.executable, *command], out / f"{part}.txt") for part, command in commands.items()]
    if not result.is_file():
        print("nothing was measured")
    return 0 if all(went) and result.is_file() else 1


def run(part: str, command: Sequence[str], log: Path) -> bool:
    """Run one part within its time limit, output in ``log``; prints how it ended, returns whether it passed."""
    start = time.monotonic()
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    with log.open("wb") as file:
        try:
            status: int | str = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=LIMITS[part], check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = "out of time"
    last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    print(f"{part}: {status}, {time.monotonic() - start:.0f} s: {last[:200]}", flush=True)
    return status == 0


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(description="Run the tests and the benchmark of the CUDA path.")
    cli.add_argument("--out", default="runs/gpu", help="folder for the output (default runs/gpu)")
    cli.add_argument("--benchmark", default="", help="options for benchmarks.bench_gpu, as one argument")
    return cli


if __name__ == "__main__":
    sys.exit(main())
