"""Many models within a limit of memory, and a broken one among them.

    python -m benchmarks.bench_models

It prints how many of the models serve, and the most memory that they take, over the limit.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import httpx

from benchmarks.harness.common import MODEL, Json, latency, run_benchmark, target
from benchmarks.harness.processes import HOST, ServerProcess, free_port, rss_mib, serving, without_settings
from service.artifact.files import GOLDEN_FILE, MODEL_FILE
from service.artifact.golden import digest_of, read_golden

METHOD: Final = (
    "Copies of mnist under other names, the last one truncated, served with IGN_MODEL_MEMORY_MIB. Callers ask for the "
    "models in random order, each model the same number of times. memory_over_limit: most resident memory, from the "
    "first answer of /healthz to the end, less that at the first answer, over the limit"
)
_SAMPLE_S: Final = 0.02
_START_S: Final = 300.0


def measure(options: argparse.Namespace) -> Json:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = [write_copy(folder, number) for number in range(options.models)]
        broken = folder / names[-1] / MODEL.parent.name / MODEL_FILE
        broken.write_bytes(broken.read_bytes()[:1000])
        settings = {"IGN_MODEL_DIR": name, "IGN_DEFAULT_MODEL": names[0], "IGN_DEVICE": "cpu", "IGN_ACCESS_LOG": "0"}
        settings |= {"IGN_MODEL_MEMORY_MIB": str(options.limit_mib), "IGN_PORT": str(port := free_port())}
        command, environ = [sys.executable, "-m", "service"], without_settings() | settings
        with serving(command, port=port, ready="/healthz", environ=environ) as server, most_memory(server) as memory:
            begin = time.monotonic()
            while server.get("/readyz")[0] != 200 and time.monotonic() < begin + _START_S:
                time.sleep(_SAMPLE_S)
            started = time.monotonic() - begin
            asked = names * options.rounds
            random.Random(0).shuffle(asked)
            with ThreadPoolExecutor(options.callers) as pool:
                answers = list(pool.map(lambda model: ask(port, model), asked))
    failed = [name for name, (status, _) in zip(asked, answers, strict=True) if status != 200]
    lost = sum(name != names[-1] for name in failed)
    return {
        "targets": [
            target("models that serve", len(set(names) - set(failed)), at_least=options.models - 1),
            target("failed requests to sound models", lost, at_most=0),
            target("memory over the limit", (memory[1] - memory[0]) / options.limit_mib, at_most=1.1),
        ],
        "start_s": started,
        "answers": latency([seconds for status, seconds in answers if status == 200]),
    }


def write_copy(folder: Path, number: int) -> str:
    """A copy of mnist with a name of the same length, so that the protobuf stays valid; returns the name."""
    name, version = f"m{number:04}", folder / f"m{number:04}" / MODEL.parent.name
    version.mkdir(parents=True)
    data = MODEL.read_bytes().replace(b'"name":"mnist","version', f'"name":"{name}","version'.encode())
    golden = read_golden(MODEL.with_name(GOLDEN_FILE), (1, 28, 28))
    (version / MODEL_FILE).write_bytes(data)
    (version / GOLDEN_FILE).write_bytes(replace(golden, digest=digest_of(data)).to_bytes())
    return name


@contextmanager
def most_memory(server: ServerProcess) -> Iterator[list[float]]:
    """The resident memory of the server in MiB at first, and the most of it, which changes in the block."""
    memory, over = [rss_mib(server.pid)] * 2, threading.Event()

    def sample() -> None:
        while not over.wait(_SAMPLE_S):
            memory[1] = max(memory[1], rss_mib(server.pid))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(sample)
        yield memory
        over.set()


def ask(port: int, model: str) -> tuple[int, float]:
    """Status and seconds of a request for an image."""
    begin = time.monotonic()
    response = httpx.post(f"http://{HOST}:{port}/generate", json={"model": model, "seed": 1, "n": 4}, timeout=60.0)
    return response.status_code, time.monotonic() - begin


OPTIONS: Final = {"models": (100, 4), "limit_mib": (512, 64), "rounds": (5, 2), "callers": (8, 2)}

if __name__ == "__main__":
    sys.exit(run_benchmark("models", METHOD, measure, OPTIONS, judge=True))
