"""CPU time of a request in the service, above the model: what a change of the way of a request is
judged by.

make bench BENCH=path
"""

import argparse
import asyncio
import itertools
import os
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import uvloop
from uvicorn.server import ServerState

from benchmarks.harness.common import MODEL, REF, Json, run_benchmark, target
from benchmarks.load_generator.messages import (
    SENDERS,
    binary_tensor,
    disc,
    post,
    upload,
    with_headers,
)
from service.app import build_services, create_app, load_models
from service.domain.latents import FloatRows
from service.runtime.onnx_model import OnnxModel
from service.server import uvicorn_server
from service.server.open_connections import OpenConnections
from service.server.process import tune_gc
from service.settings import Settings
from tests.helpers.pictures import save

METHOD: Final = (
    "One process on one core. `together` connections without sockets receive a request each, "
    "and the next ones once all have their responses. onnxruntime is replaced by a copy of "
    "the rows. CPU time of all threads, and of the event loop, in microseconds a request: "
    "median of `rounds`, and the least"
)
AIMS_US: Final = {"PNG /project": 60.0, "raw infer": 42.0, "/generate": 60.0}
DISTINCT: Final = 32
_ENOUGH: Final = 400  # requests of a round, at least
_WARM_UP: Final = 20  # rounds of one request a connection


class Peer(asyncio.Transport):
    """The other end of a connection: it keeps the response, and counts it."""

    def __init__(self, turn: "Turn") -> None:
        super().__init__({"peername": ("127.0.0.1", 5000), "sockname": ("127.0.0.1", 80)})
        self._turn = turn
        self.response = b""

    def write(self, data: Any) -> None:
        """A response is written at once."""
        self.response = bytes(data)
        self._turn.left -= 1
        if not self._turn.left:
            self._turn.ended.set()

    def writelines(self, parts: Any) -> None:
        """As `write`."""
        self.write(b"".join(parts))

    def is_closing(self) -> bool:
        """The peer stays."""
        return False

    def get_write_buffer_size(self) -> int:
        """Nothing waits to be sent."""
        return 0

    def pause_reading(self) -> None:
        """Nothing arrives unasked."""

    def resume_reading(self) -> None:
        """See `pause_reading`."""


class Turn:
    """Requests that arrive together, one on each connection."""

    def __init__(self, make_protocol: Any, connections: int) -> None:
        self.left, self.ended, self.peers = 0, asyncio.Event(), list[tuple[Any, Peer]]()
        for _ in range(connections):
            protocol = make_protocol()
            peer = Peer(self)
            protocol.connection_made(peer)
            self.peers.append((protocol, peer))

    async def send(self, requests: Sequence[bytes], times: int) -> None:
        """Send each connection the next request, so many times."""
        for number in range(times):
            self.left = len(self.peers)
            self.ended.clear()
            for index, (protocol, _) in enumerate(self.peers):
                protocol.data_received(requests[(number * self.left + index) % len(requests)])
            await self.ended.wait()


def payloads() -> dict[str, list[bytes]]:
    """Requests of the three kinds that most callers send."""
    pictures = [save(disc(number, size=28)) for number in range(DISTINCT)]
    rows = np.random.default_rng(0).standard_normal((DISTINCT, 28 * 28), np.float32)
    return {
        "PNG /project": [upload("/project?steps=1", picture) for picture in pictures],
        "raw infer": [binary_tensor("mnist", row.tobytes()) for row in rows],
        "/generate": [
            post("/generate", {"model": "mnist", "seed": n}, "image/png") for n in range(DISTINCT)
        ],
    }


async def measured(options: argparse.Namespace) -> list[Json]:
    settings = Settings(model_dir=MODEL.parents[2], device="cpu", threads=1, access_log=False)
    services = build_services(settings)
    app = create_app(services)
    await load_models(services)
    tune_gc()
    config = uvicorn_server.config(app, OpenConnections(services))
    config.load()
    protocol: Any = config.http_protocol_class
    make_protocol = partial(protocol, config=config, server_state=ServerState(), app_state={})
    turn = Turn(make_protocol, options.together)
    lines = list[Json]()
    with patch.object(OnnxModel, "_compute", _copied):
        for (payload, requests), (sender, headers) in itertools.product(
            payloads().items(), SENDERS.items()
        ):
            sent = [with_headers(each, headers) for each in requests]
            lines.append(
                {"payload": payload, "headers": sender, **await cost(turn, sent, options.rounds)}
            )
    return lines


async def cost(turn: Turn, requests: Sequence[bytes], rounds: int) -> Json:
    await turn.send(requests, _WARM_UP)
    for _, peer in turn.peers:
        if not peer.response.startswith(b"HTTP/1.1 200"):
            raise OSError(f"not answered with 200: {peer.response[:200]!r}")
    times = -(-_ENOUGH // len(turn.peers))
    count = times * len(turn.peers)
    whole = list[float]()
    loop = list[float]()
    for _ in range(rounds):
        began = time.process_time()
        loop_began = time.thread_time()
        await turn.send(requests, times)
        whole.append((time.process_time() - began) / count * 1e6)
        loop.append((time.thread_time() - loop_began) / count * 1e6)
    return {
        "us_per_request": statistics.median(whole),
        "least_us": min(whole),
        "loop_us_per_request": statistics.median(loop),
    }


def _copied(_: OnnxModel, rows: FloatRows) -> FloatRows:
    return rows.copy()


def measure(options: argparse.Namespace) -> Json:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    lines = uvloop.run(measured(options))
    targets = [
        target(
            f"{payload}, any headers",
            max(line["us_per_request"] for line in lines if line["payload"] == payload),
            at_most=aim,
            unit="µs",
        )
        for payload, aim in AIMS_US.items()
    ]
    return {"model": REF, "targets": targets, "lines": lines}


if __name__ == "__main__":
    raise SystemExit(run_benchmark("path", METHOD, measure, {"together": 16, "rounds": 25}))
