"""Many models within a limit of memory, and a broken one among them.

    python -m benchmarks.bench_models

It prints how many of the models serve, and the most memory that they take, over the limit.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.harness.common import MODEL, Json, latency, run_benchmark, target
from benchmarks.harness.processes import (
    ServerProcess,
    free_port,
    memory_samples,
    serving,
    without_settings,
)
from benchmarks.load_generator.fetch import fetch
from benchmarks.load_generator.messages import post
from service.artifact.files import GOLDEN_FILE, MODEL_FILE
from service.artifact.golden import digest_of, read_golden

METHOD: Final = (
    "Copies of mnist under other names, the last one truncated, served with IGN_MODEL_MEMORY_MIB. "
    "Callers ask for the models in random order, each model the same number of times. "
    "memory_over_limit: most resident memory, from the first answer of /healthz to the end, less "
    "that at the first answer, over the limit"
)
_SAMPLE_S: Final = 0.02
_START_S: Final = 300.0


def measure(options: argparse.Namespace) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        names = [write_copy(Path(folder), number) for number in range(options.models)]
        broken = Path(folder) / names[-1] / MODEL.parent.name / MODEL_FILE
        broken.write_bytes(broken.read_bytes()[:1000])
        port = free_port()
        environ = without_settings() | {
            "IGN_MODEL_DIR": folder,
            "IGN_DEFAULT_MODEL": names[0],
            "IGN_DEVICE": "cpu",
            "IGN_ACCESS_LOG": "0",
            "IGN_MODEL_MEMORY_MIB": str(options.limit_mib),
            "IGN_PORT": str(port),
        }
        command = [sys.executable, "-m", "service"]
        with (
            serving(command, port=port, ready="/healthz", environ=environ) as server,
            memory_samples(server.pid, _SAMPLE_S) as samples,
        ):
            begin = time.monotonic()
            while server.get("/readyz")[0] != 200 and time.monotonic() < begin + _START_S:
                time.sleep(_SAMPLE_S)
            started = time.monotonic() - begin
            asked = names * options.rounds
            random.Random(0).shuffle(asked)
            failed, seconds = uvloop.run(ask(server, asked, options.callers))
    lost = failed.total() - failed[names[-1]]
    growth = max(mib for _, mib in samples) - samples[0][1]
    return {
        "targets": [
            target("models that serve", options.models - len(failed), at_least=options.models - 1),
            target("failed requests to sound models", lost, at_most=0),
            target("memory over the limit", growth / options.limit_mib, at_most=1.1),
        ],
        "start_s": started,
        "answers": latency(seconds),
    }


def write_copy(folder: Path, number: int) -> str:
    """A copy of mnist; its name has the same length, so that the protobuf stays valid."""
    name = f"m{number:04}"
    version = folder / name / MODEL.parent.name
    version.mkdir(parents=True)
    card = f'"name":"{name}","version'.encode()
    data = MODEL.read_bytes().replace(b'"name":"mnist","version', card)
    golden = read_golden(MODEL.with_name(GOLDEN_FILE), (1, 28, 28))
    (version / MODEL_FILE).write_bytes(data)
    (version / GOLDEN_FILE).write_bytes(replace(golden, digest=digest_of(data)).to_bytes())
    return name


async def ask(
    server: ServerProcess, models: list[str], callers: int
) -> tuple[Counter[str], list[float]]:
    """Failed requests of each model, and seconds of the others."""
    failed = Counter[str]()
    seconds = list[float]()
    rest = iter(models)

    async def work() -> None:
        for model in rest:
            begin = time.monotonic()
            answer = await fetch(
                server.port, post("/generate", {"model": model, "seed": 1, "n": 4})
            )
            if answer.status == 200:
                seconds.append(time.monotonic() - begin)
            else:
                failed[model] += 1

    await asyncio.gather(*(work() for _ in range(callers)))
    return failed, seconds


OPTIONS: Final = {
    "models": (100, 4),
    "limit_mib": (512, 64),
    "rounds": (5, 2),
    "callers": (8, 2),
}

if __name__ == "__main__":
    sys.exit(run_benchmark("models", METHOD, measure, OPTIONS, judge=True))
