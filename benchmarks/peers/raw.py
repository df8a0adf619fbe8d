"""Raw onnxruntime without a server, in as many single-threaded processes as an entry has: the upper bound.

python -m benchmarks.peers.raw MODEL ROWS SECONDS       # one process; prints rows/s
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness.processes import ROOT
from benchmarks.peers.common import Function
from benchmarks.peers.one_run import pinned


def rows_per_s(model: Path, *, rows: int, seconds: float, processes: int, cpus: Sequence[int]) -> float:
    """The rate of all processes together with batches of ``rows`` rows.

    Raises:
        RuntimeError: a process failed.
    """
    command = [sys.executable, "-m", "benchmarks.peers.raw", str(model), str(rows), str(seconds)]
    with pinned(cpus):
        running = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
            for _ in range(processes)
        ]
    said = [process.communicate() for process in running]
    for process, (_, err) in zip(running, said, strict=True):
        if process.returncode != 0:
            raise RuntimeError(f"raw onnxruntime failed: {err[-1000:]}")
    return sum(float(out) for out, _ in said)


def main(argv: Sequence[str]) -> int:
    model, rows, seconds = argv
    function = Function(model)
    batch = np.random.default_rng(0).standard_normal((int(rows), *function.shape), dtype=np.float32)
    function.rows(batch)
    calls = 0
    start = now = time.perf_counter()
    while now - start < float(seconds):
        function.rows(batch)
        calls += 1
        now = time.perf_counter()
    print(calls * len(batch) / (now - start))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
