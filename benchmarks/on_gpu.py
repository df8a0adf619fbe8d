"""All that has to be seen on a GPU, in one go and in less than ten minutes: the tests, the benchmark, and its tables.

    python -m benchmarks.on_gpu --out runs/gpu

The folder gets what each of them said, and `gpu.json`. Each ends within its time, and the next runs whatever came of
it. Exit status 1 says that something failed, took too long, or that there is no GPU.
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
"""Seconds; the sum is less than ten minutes."""


def main() -> int:
    options = parser().parse_args()
    out = Path(options.out).resolve()
    result = out / "gpu.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)  # of an earlier time
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


def run(part: str, command: Sequence[str], said: Path) -> bool:
    """One part, in the time it has; its output goes into the file ``said``. Tells its end, and whether it went well."""
    start = time.monotonic()
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    with said.open("wb") as file:
        try:
            status: int | str = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=LIMITS[part], check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = "out of time"
    last = said.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    print(f"{part}: {status}, {time.monotonic() - start:.0f} s: {last[:200]}", flush=True)
    return status == 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="Run the tests and the benchmark of the CUDA path.")
    found.add_argument("--out", default="runs/gpu", help="folder for what they say (default runs/gpu)")
    found.add_argument("--benchmark", default="", help="options for benchmarks.bench_gpu, as one argument")
    return found


if __name__ == "__main__":
    sys.exit(main())
