"""A seeded campaign of hostile files: networks for `ign import`, versions for the service to load,
and images.

    python -m benchmarks.reliability.files --n 100000 --results benchmarks/results/files.json

The same seed makes the same files.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.common import Json, run_benchmark, target

METHOD = (
    "A process opens files made from `seed` and their number: a third are networks, with "
    "what the child process of `ign import --dry-run` does, a third versions of a model with "
    "their cards, with what the service does, a third images, with what `/project` does. A "
    "process that crashes, or needs more than `LIMIT_S` for a file, is replaced, as that of "
    "`ign import` is. A fault is an exception of another kind than those that users are "
    "shown as one line. Memory: how much the peak of the process grows by a file; the "
    "process may have `MEMORY` of data"
)
KINDS: Final = ("network", "version", "image")
LIMIT_S: Final = 10.0
MEMORY: Final = 4 << 30
_SHOWN: Final = 50


def _open_files(seed: int, connection: "Connection[Any, Any]") -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # for what onnxruntime writes
    from benchmarks.reliability.hostile_files import run
    from benchmarks.reliability.hostile_inputs import images

    images()
    connection.send("ready")
    while True:
        number, kind = connection.recv()
        # the peak of memory is now what it is
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _kib("VmRSS")
        outcome = run(seed, number, kind)
        connection.send((outcome, _kib("VmHWM") - before))


def _kib(name: str) -> int:
    return int(
        Path("/proc/self/status").read_text(encoding="ascii").partition(f"{name}:")[2].split()[0]
    )


def _started(seed: int) -> "tuple[SpawnProcess, Connection[Any, Any]]":
    """A process that opens files, once it is ready, and the connection to it."""
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe()
    process = context.Process(target=_open_files, args=(seed, other), daemon=True)
    process.start()
    other.close()
    connection.recv()
    return process, connection


def _outcomes(options: argparse.Namespace) -> Iterator[tuple[int, str, str, int]]:
    """Number, kind and outcome of each file, and the KiB by which it made the process larger."""
    process, connection = _started(options.seed)
    for number in range(options.start, options.start + options.n):
        kind = KINDS[number % len(KINDS)]
        connection.send((number, kind))
        try:
            outcome, grown = connection.recv() if connection.poll(LIMIT_S) else ("timeout", 0)
        except EOFError:
            process.join()
            outcome = f"crash {process.exitcode}"
            grown = 0
        yield number, kind, outcome, grown
        if outcome.startswith(("timeout", "crash")):
            process.kill()
            process, connection = _started(options.seed)


def measure(options: argparse.Namespace) -> Json:
    outcomes: Counter[tuple[str, str]] = Counter()
    shown: list[str] = []
    growth = dict.fromkeys(KINDS, 0.0)
    began = time.monotonic()
    for number, kind, outcome, grown in _outcomes(options):
        name = outcome.partition(" ")[0]
        outcomes[kind, name] += 1
        growth[kind] = max(growth[kind], grown / 1024)
        if name in ("FAULT", "timeout", "crash"):
            shown.append(f"{number} {kind}: {outcome}")
            print(shown[-1], file=sys.stderr, flush=True)
    endless = outcomes["image", "crash"] + outcomes["image", "timeout"]
    return {
        "seconds": time.monotonic() - began,
        "outcomes": [
            {"kind": kind, "outcome": name, "count": n}
            for (kind, name), n in sorted(outcomes.items())
        ],
        "shown": shown[:_SHOWN],
        "growth_mib": growth,
        "targets": [
            target(
                "exceptions that no user should see",
                sum(outcomes[kind, "FAULT"] for kind in KINDS),
                at_most=0,
            ),
            target("images that crash the process or do not end", endless, at_most=0),
            target("versions that crash the process", outcomes["version", "crash"], at_most=0),
            target("growth of memory by an image", growth["image"], at_most=64, unit="MiB"),
        ],
    }


OPTIONS: Final = {
    "n": 100_000,
    "seed": 0,
    "start": 0,
}

if __name__ == "__main__":
    sys.exit(run_benchmark("files", METHOD, measure, OPTIONS, judge=True))
