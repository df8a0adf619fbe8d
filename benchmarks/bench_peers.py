"""This service beside mosec, with the same model file, machine and images.

    python -m benchmarks.bench_peers --results benchmarks/results/peers.json

mosec runs in an environment of its own (--environment, made if it is missing), with the same
onnxruntime release and the settings that its documentation recommends (benchmarks/mosec_peer.py
names and explains them), of those the fastest batching that was measured. It must return the same
images as this service. Compare the ratios of one run, not the figures of two runs.
"""

import argparse
import asyncio
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.common import (
    MODEL,
    Json,
    each_round,
    in_turn,
    median_ratio,
    run_benchmark,
    target,
)
from benchmarks.harness.processes import (
    ROOT,
    ServerFailed,
    ServerProcess,
    free_port,
    serving,
    without_settings,
)
from benchmarks.load_generator.fetch import Answer, fetch
from benchmarks.load_generator.load import run_load, summary
from benchmarks.load_generator.messages import (
    HEADER_LENGTH,
    binary_tensor,
    disc,
    request,
    upload,
)
from tests.contract.data import pixels
from tests.helpers.pictures import save

METHOD: Final = (
    "Closed loop. In every round the entries take turns, in reverse order every second "
    "round: the server starts alone, its responses to all bodies, sent at once, are compared "
    "with those of this service (PNG: the same pixels; raw: within 1e-5), then every load "
    "runs for `seconds`. `×n` has n copies of the model with one thread each; `as it comes` "
    "is this service with its default settings. No server writes an access log. Requests/s "
    "counts 2xx. Figures are medians over the rounds, ratios are medians of the ratios of "
    "each round. CPU time includes all processes of the server"
)
OURS: Final = "ign"
PEER: Final = "mosec"
PNG: Final = "png"
RAW: Final = "raw"
BODIES: Final[Mapping[str, list[bytes]]] = {
    PNG: [save(disc(number, size=28)) for number in range(32)],
    RAW: [row.tobytes() for row in np.random.default_rng(0).standard_normal((32, 784), np.float32)],
}
# (rows of the peer's largest batch, milliseconds that it waits for more), by the number of copies:
# the fastest of those tried
BATCHING: Final = {1: (32, 2), 2: (8, 1)}
# the least requests/s over those of the peer, by the number of copies
LEAST: Final = {
    0: {PNG: 0.95, RAW: 0.95},
    1: {PNG: 1.3, RAW: 1.0},
    2: {PNG: 1.0, RAW: 0.8},
}


class Entry(NamedTuple):
    """A server with a number of copies of the model, one thread each; 0: this service with its
    default settings.
    """

    name: str
    copies: int

    def __str__(self) -> str:
        return f"{self.name} ×{self.copies}" if self.copies else f"{self.name} as it comes"

    def environment(self, port: int) -> dict[str, str]:
        """The settings of its server, as environment variables."""
        settings: Json
        if self.name == OURS:
            settings = {"IGN_PORT": port, "IGN_ACCESS_LOG": 0, "IGN_MODEL_DIR": MODEL.parents[2]}
            if self.copies:  # one thread each: they are divided among the processes
                settings |= {"IGN_DEVICE": "cpu"}
                settings |= dict.fromkeys(("IGN_WORKERS", "IGN_THREADS"), self.copies)
        else:
            rows, wait_ms = BATCHING[min(self.copies, 2)]
            settings = {"PYTHONPATH": ROOT, "PEER_PORT": port, "PEER_COPIES": self.copies}
            settings |= {"PEER_MAX_BATCH": rows, "PEER_WAIT_MS": wait_ms, "PEER_MODEL": MODEL}
        return {name: str(value) for name, value in settings.items()}

    def requests(self, payload: str) -> list[bytes]:
        """The requests for all bodies of a kind."""
        if self.name == PEER:
            send = partial(
                request, "/predict", headers={"Content-Type": "application/octet-stream"}
            )
        elif payload == PNG:
            send = partial(upload, "/project?steps=1")
        else:
            send = partial(binary_tensor, "mnist")
        return [send(body) for body in BODIES[payload]]


def values(payload: str, response: Answer) -> NDArray[Any]:
    """The pixels or floats of a response; OSError or ValueError if there are none."""
    if response.status != 200:
        raise ValueError(f"{response.status} {response.body[:200]!r}")
    if payload == PNG:
        return pixels(response.body)
    data = response.body[int(response.headers.get(HEADER_LENGTH.lower(), 0)) :]
    return np.frombuffer(data, "<f4")


def check(payload: str, responses: Sequence[Answer], expected: Sequence[Answer]) -> None:
    """Raise `ServerFailed` for a response that is not what this service returns."""
    # the last bits of floats may differ between batch sizes
    tolerance = 0 if payload == PNG else 1e-5
    for number, (response, right) in enumerate(zip(responses, expected, strict=True)):
        try:
            np.testing.assert_allclose(
                values(payload, response), values(payload, right), rtol=0, atol=tolerance
            )
        except (AssertionError, OSError, ValueError) as exc:
            raise ServerFailed(f"{payload} {number}: not as this service: {exc}") from exc


def install(environment: Path) -> str:
    """The Python of the peer's environment, which is made if it is missing."""
    python = environment / "bin" / "python"
    same = [f"{package}=={version(package)}" for package in ("onnxruntime", "pillow", "numpy")]
    venv.create(environment, symlinks=True, with_pip=True)
    command = [str(python), "-m", "pip", "install", PEER, *same]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerFailed(f"{PEER} cannot be installed: {done.stderr.strip()[-200:]}")
    return str(python)


class Benchmark:
    """One run: the interpreters of the servers, and the expected responses."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        peer = install(Path(options.environment).expanduser())
        self.commands = {
            OURS: (sys.executable, "-m", "service"),
            PEER: (peer, "-m", "benchmarks.mosec_peer"),
        }
        self.expected: dict[str, list[Answer]] = {}

    def compare(self) -> Json:
        options = self.options
        self.turn(Entry(OURS, 1), [])  # takes the expected responses
        entries = [Entry(OURS, 0)]
        entries += [Entry(name, copies) for copies in options.copies for name in (OURS, PEER)]
        ways = {str(entry): partial(self.turn, entry, options.connections) for entry in entries}
        rounds = in_turn(ways, options.rounds)
        result: Json = {"targets": [], "ratios": []}
        for payload, n in product(BODIES, options.connections):
            loads = {
                entry: [each[payload][str(n)] for each in results]
                for entry, results in rounds.items()
            }
            lines = [{"entry": entry} | summary(each) for entry, each in loads.items()]
            lines.sort(key=lambda line: -float(line["requests_per_s"]))
            result[f"{payload}_at_{n}_connections"] = lines
            best = next(line["entry"] for line in lines if f"{OURS} ×" in line["entry"])
            # as it comes over its own best number of copies, and every other over the peer
            over = {0: best} | {copies: str(Entry(PEER, copies)) for copies in options.copies}
            for copies, other in over.items():
                own = str(Entry(OURS, copies))
                rate, p99 = (
                    median_ratio(each_round(loads[own], name), each_round(loads[other], name))
                    for name in ("ok_per_s", "ok.p99_ms")
                )
                where = f"{payload}, {n} connections: {own} over {other}"
                line = {"of": where, "requests_per_s_ratio": rate, "p99_ratio": p99}
                result["ratios"].append(line)
                least = LEAST[min(copies, 2)][payload]
                result["targets"].append(target(f"{where}, requests/s", rate, at_least=least))
                if copies:
                    result["targets"].append(target(f"{where}, p99", p99, at_most=1.0))
        return result

    def turn(self, entry: Entry, connections: Sequence[int]) -> Json:
        """Start a server, compare its responses, and run the loads."""
        port = free_port()
        environ = without_settings() | entry.environment(port)
        ready = "/readyz" if entry.name == OURS else "/"
        command = self.commands[entry.name]
        with serving(command, port=port, ready=ready, environ=environ) as server:
            result: Json = {}
            for payload in BODIES:
                sent = entry.requests(payload)
                responses = asyncio.run(all_responses(server, sent))
                check(payload, responses, self.expected.setdefault(payload, responses))
                result[payload] = {
                    str(n): run_load(server, sent, n, self.options.seconds) for n in connections
                }
        print(f"{entry}: done", file=sys.stderr, flush=True)
        return result


async def all_responses(server: ServerProcess, requests: Sequence[bytes]) -> list[Answer]:
    """The responses to requests that are sent at once, so that the server forms batches."""
    return await asyncio.gather(*(fetch(server.port, data) for data in requests))


def measure(options: argparse.Namespace) -> Json:
    return Benchmark(options).compare()


OPTIONS: Final = {
    "environment": "~/.cache/ign-service/peers/mosec",
    "copies": [1, 2],
    "connections": [32, 256],
    "seconds": 6.0,
    "rounds": 3,
}

if __name__ == "__main__":
    sys.exit(run_benchmark("peers", METHOD, measure, OPTIONS))
