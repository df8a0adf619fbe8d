"""This service beside plain FastAPI with a batcher and beside mosec, with the same model file,
machine and images.

    python -m benchmarks.bench_peers --results benchmarks/results/peers.json
    python -m benchmarks.bench_peers --quick --only fastapi
    python -m benchmarks.bench_peers --layers 17 --results benchmarks/results/peers-imported.json

`--layers` takes an imported network in place of the shipped model: DnCNN's 17 convolutions, for
images of 28×28. FastAPI runs in this environment, mosec in one of its own (--environments), with
the same onnxruntime release and the settings that its documentation recommends
(benchmarks/peers/*_server.py name and explain them), of those the fastest batching that was
measured. A server must return the same images as this service, or it is not measured. Compare the
ratios of one run, not the figures of two runs.
"""

import argparse
import asyncio
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from benchmarks.bench_tiles import NAME, import_network
from benchmarks.harness.common import (
    MODEL,
    Json,
    each_round,
    in_turn,
    median_ratio,
    rounded,
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
    disc,
    encoded,
    request,
    sent_by,
    upload,
)
from service.artifact.files import MODEL_FILE
from service.runtime.onnx_model import OnnxModel

METHOD: Final = (
    "Closed loop. In every round the entries take turns, in reverse order every second "
    "round: the server starts alone, its responses to all bodies, sent at once, are compared "
    "with those of this service (PNG: the same pixels; raw: within 1e-5), then every load "
    "runs for `seconds`. `×n` has n copies of the model with one thread each; `as it comes` "
    "is this service with its default settings. No server writes an access log. Requests/s "
    "counts 2xx. Figures are medians over the rounds, ratios are medians of the ratios of "
    "each round. CPU time includes all processes of the server; that of the model alone is "
    "measured in this process, in batches of 16 rows"
)
OURS: Final = "ign"
PNG = "png"
RAW = "raw"
BODIES: Final[Mapping[str, list[bytes]]] = {
    PNG: [encoded(disc(number, size=28)) for number in range(32)],
    RAW: [row.tobytes() for row in np.random.default_rng(0).standard_normal((32, 784), np.float32)],
}
READY: Final = {OURS: "/readyz", "fastapi": "/openapi.json", "mosec": "/"}
# (rows of the largest batch, milliseconds that it waits for more), by the number of copies: the
# fastest of those tried
BATCHING: Final = {"fastapi": {1: (16, 0)}, "mosec": {1: (32, 2), 2: (8, 1)}}

Rounds = Mapping[str, Sequence[Json]]  # one report per round, by entry


@dataclass(frozen=True, slots=True)
class Entry:
    """A server with a number of copies of the model, one thread each; 0: this service with its
    default settings.
    """

    name: str
    copies: int

    def __str__(self) -> str:
        return f"{self.name} as it comes" if self.copies == 0 else f"{self.name} ×{self.copies}"

    def environment(self, port: int, model: Path) -> dict[str, str]:
        """The settings of its server, as environment variables; ``model`` is a version's file."""
        if self.name == OURS:
            ours: Json = {"IGN_PORT": port, "IGN_ACCESS_LOG": 0, "IGN_MODEL_DIR": model.parents[2]}
            if self.copies:  # one thread each: they are divided among the processes
                ours |= {
                    "IGN_DEVICE": "cpu",
                    "IGN_WORKERS": self.copies,
                    "IGN_THREADS": self.copies,
                }
            return {name: str(value) for name, value in ours.items()}
        known = BATCHING[self.name]
        rows, wait_ms = known.get(self.copies, known[max(known)])
        peer: Json = {
            "PORT": port,
            "PROCESSES": self.copies,
            "MAX_BATCH": rows,
            "WAIT_MS": wait_ms,
            "MODEL": model,
        }
        return {"PYTHONPATH": str(ROOT)} | {
            f"PEER_{name}": str(value) for name, value in peer.items()
        }

    def requests(self, payload: str, model: Path) -> list[bytes]:
        """The requests for all bodies of a kind."""
        send: Callable[[bytes], bytes]
        if self.name != OURS:
            send = partial(
                request, "/predict", headers={"Content-Type": "application/octet-stream"}
            )
        else:
            send = (
                partial(upload, "/project?steps=1")
                if payload == PNG
                else partial(binary_tensor, model)
            )
        return [send(body) for body in BODIES[payload]]


def binary_tensor(model: Path, body: bytes) -> bytes:
    """A row as an Open Inference Protocol request with binary data, both ways."""
    tensor = {
        "name": "x",
        "shape": [1, 1, 28, 28],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(body)},
    }
    head = json.dumps(
        {"parameters": {"binary_data_output": True, "steps": 1}, "inputs": [tensor]}
    ).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return request(f"/v2/models/{model.parents[1].name}/infer", head + body, headers)


def values(payload: str, response: Answer) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """The pixels or floats of a response; OSError or ValueError if there are none."""
    if response.status != 200:
        raise ValueError(f"{response.status} {response.body[:200]!r}")
    if payload == PNG:
        return np.asarray(Image.open(io.BytesIO(response.body), formats=("PNG",)), np.float64)
    data = response.body[int(response.headers.get(HEADER_LENGTH.lower(), 0)) :]
    return np.frombuffer(data, "<f4").astype(np.float64)


def check(payload: str, responses: Sequence[Answer], expected: Sequence[Answer]) -> None:
    """Raise `ServerFailed` for a response that is not what this service returns."""
    # the last bits of floats may differ between batch sizes
    tolerance = 0 if payload == PNG else 1e-5
    for number, (response, right) in enumerate(zip(responses, expected, strict=True)):
        try:
            measured = values(payload, response)
            wanted = values(payload, right)
        except (OSError, ValueError) as exc:
            raise ServerFailed(f"{payload} {number}: {exc}") from exc
        if measured.shape != wanted.shape or not np.allclose(
            measured, wanted, rtol=0, atol=tolerance
        ):
            raise ServerFailed(
                f"{payload} {number}: the response differs from that of this service"
            )


class Benchmark:
    """One run: the interpreters, the expected responses, and why entries were skipped."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.pythons = dict.fromkeys((OURS, *options.only), sys.executable)
        self.expected: dict[str, list[Answer]] = {}
        self.skipped: dict[str, str] = {}
        self.model = MODEL

    def run(self) -> Json:
        with tempfile.TemporaryDirectory() as folder:
            if self.options.layers:
                models = import_network(
                    Path(folder), self.options.layers, "--range=-1,1", "--shape", "1,28,28"
                )
                self.model = models / NAME / "1" / MODEL_FILE
            return self.compare()

    def compare(self) -> Json:
        options = self.options
        self.turn(Entry(OURS, 1), [])  # takes the expected responses
        for name in options.only:
            self.install(name)
        names = [OURS, *(name for name in options.only if name not in self.skipped)]
        entries = [
            Entry(OURS, 0),
            *(Entry(name, copies) for copies in options.copies for name in names),
        ]
        rounds = in_turn(
            {str(entry): partial(self.measured, entry) for entry in entries}, options.rounds
        )
        whole = {name: results for name, results in rounds.items() if name not in self.skipped}
        loads = [(payload, n) for payload in BODIES for n in options.connections]
        compared = [line for payload, n in loads for line in ratios(whole, payload, n)]
        return {
            "targets": targets(compared),
            "skipped": self.skipped,
            "model": [{"core_ms": rounded(core_ms(self.model))}],
            **{f"{payload}_at_{n}_connections": lines(whole, payload, n) for payload, n in loads},
            "ratios": compared,
        }

    def install(self, name: str) -> None:
        """Make the environment of a peer that this one does not have."""
        try:
            version(name)
        except ImportError:
            place = Path(self.options.environments).expanduser() / name
            self.pythons[name] = python = str(place / "bin" / "python")
            same = [
                f"{package}=={version(package)}" for package in ("onnxruntime", "pillow", "numpy")
            ]
            for command in (
                [sys.executable, "-m", "venv", str(place)],
                [python, "-m", "pip", "install", name, *same],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    return self.skip(
                        name, f"cannot be installed: {done.stderr.strip().splitlines()[-1:]}"
                    )

    def measured(self, entry: Entry) -> Json:
        """All loads of one entry; nothing if it fails, which excludes it."""
        if str(entry) not in self.skipped:
            try:
                return self.turn(entry, self.options.connections)
            except (ServerFailed, OSError) as exc:
                self.skip(str(entry), str(exc).replace(str(Path.home()), "~")[-600:])
        return {}

    def turn(self, entry: Entry, connections: Sequence[int]) -> Json:
        """Start a server, compare its responses, and run the loads."""
        options = self.options
        port = free_port()
        module = "service" if entry.name == OURS else f"benchmarks.peers.{entry.name}_server"
        environ = without_settings() | entry.environment(port, self.model)
        command = [self.pythons[entry.name], "-m", module]
        with serving(
            command, port=port, ready=READY[entry.name], environ=environ, stop_s=10.0
        ) as server:
            for payload in BODIES:
                responses = asyncio.run(all_responses(server, entry.requests(payload, self.model)))
                check(payload, responses, self.expected.setdefault(payload, responses))
            result: Json = {payload: {} for payload in BODIES}
            for payload in BODIES:
                sent = sent_by(options.headers, entry.requests(payload, self.model))
                for n in connections:
                    result[payload][str(n)] = load = run_load(server, sent, n, options.seconds)
                    print(
                        f"{entry}: {payload} at {n}: {load['ok_per_s']}/s",
                        file=sys.stderr,
                        flush=True,
                    )
            return result

    def skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        print(f"skipped: {name}: {reason}", file=sys.stderr, flush=True)


def core_ms(file: Path, rows: int = 16, calls: int = 60) -> float:
    """CPU time of a row in the model alone, one thread: the median of some calls."""
    model = OnnxModel(file.read_bytes(), threads=1)
    batch = np.zeros((rows, 1, 28, 28), np.float32)
    seconds = []
    for _ in range(calls):
        began = time.process_time()
        model.run(batch)
        seconds.append(time.process_time() - began)
    return float(np.median(seconds)) * 1e3 / rows


async def all_responses(server: ServerProcess, requests: Sequence[bytes]) -> list[Answer]:
    """The responses to requests that are sent at once, so that the server forms batches."""
    return await asyncio.gather(*(fetch(server.port, data) for data in requests))


def load_of(results: Sequence[Json], payload: str, connections: int) -> list[Json]:
    return [result[payload][str(connections)] for result in results]


def lines(rounds: Rounds, payload: str, connections: int) -> list[Json]:
    """One load of each entry, the fastest first."""
    result = []
    for entry, results in rounds.items():
        loads = load_of(results, payload, connections)
        rates = each_round(loads, "ok_per_s")
        line = {
            "entry": entry,
            "requests_per_s_least": min(rates),
            "requests_per_s_most": max(rates),
        }
        result.append(line | summary(loads))
    return sorted(result, key=lambda line: float(line["requests_per_s"]), reverse=True)


def ratios(rounds: Rounds, payload: str, connections: int) -> list[Json]:
    """The best of this service over the best peer of all, and over the best with as many copies."""
    order = [str(line["entry"]) for line in lines(rounds, payload, connections)]
    ours, peers = (
        [entry for entry in order if entry.startswith(OURS) is own] for own in (True, False)
    )
    pairs = {("the best of all", own): peer for own, peer in zip(ours[:1], peers, strict=False)}
    pairs |= {
        ("as many copies", own): peer
        for own in ours
        for peer in reversed(peers)
        if peer[-2:] == own[-2:]
    }
    result = []
    for (of, own), peer in pairs.items():
        over, under = (load_of(rounds[entry], payload, connections) for entry in (own, peer))
        line = {
            "payload": payload,
            "connections": connections,
            "ours": own,
            "best_peer": peer,
            "of": of,
        }
        for name, figure in (("requests_per_s_ratio", "ok_per_s"), ("p99_ratio", "ok.p99_ms")):
            line[name] = median_ratio(each_round(over, figure), each_round(under, figure))
        result.append(line)
    return result


def targets(compared: Sequence[Json]) -> list[Json]:
    """For single images: more requests per second, and a p99 that is not higher."""
    result = []
    for each in compared:
        if each["payload"] == PNG and each["of"] == "the best of all":
            where = (
                f"png, {each['connections']} connections: {each['ours']} over {each['best_peer']}"
            )
            result.append(
                target(f"{where}, requests/s", each["requests_per_s_ratio"], at_least=1.5)
            )
            result.append(target(f"{where}, p99", each["p99_ratio"], at_most=1.0))
    return result


OPTIONS: Final = {
    "environments": ("~/.cache/ign-service/peers",),
    "only": (["fastapi", "mosec"],),
    "headers": ("plain",),
    "layers": (0,),
    "copies": ([1, 2], [1]),
    "connections": ([32, 256], [32]),
    "seconds": (6.0, 1.0),
    "rounds": (3, 1),
}

if __name__ == "__main__":
    sys.exit(run_benchmark("peers", METHOD, lambda options: Benchmark(options).run(), OPTIONS))
