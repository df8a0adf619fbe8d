"""Imported networks: a page beside onnxruntime over the same tiles, and who waits for it.

python -m benchmarks.bench_tiles --results benchmarks/results/tiles.json
"""

import argparse
import asyncio
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from timeit import timeit
from typing import Final

import numpy as np
from PIL import Image

from benchmarks.bench_service import SETTINGS, generate
from benchmarks.harness.common import (
    Json,
    each_round,
    in_turn,
    median_ratio,
    run_benchmark,
    target,
)
from benchmarks.harness.processes import ROOT, ServerFailed, ServerProcess, memory_samples, service
from benchmarks.load_generator.fetch import fetch
from benchmarks.load_generator.load import run_load
from benchmarks.load_generator.messages import upload
from service.artifact.files import MODEL_FILE
from service.artifact.pixels import Levels as Pixels
from service.artifact.pixels import to_rows
from service.environment import available_cpus
from service.runtime.onnx_model import OnnxModel
from tests.helpers.foreign import Network
from tests.helpers.pictures import save

METHOD: Final = (
    "`layers` convolutions of 64 channels (six: 0.2 million parameters), imported. A grey "
    "page of `width`×`height` as PNG, in and out. plain: onnxruntime with all threads over "
    "the same tiles, in batches of the service. share: pixels/s of the service over those of "
    "plain, round by round. others: p99 of /generate with the digits while `uploads` such "
    "pages are sent again and again, over p99 alone: with the default limit of bytes in "
    "flight, which accepts one page, so the others come again, whole, a second after their "
    "429; and with room for all"
)
NAME: Final = "denoiser"
PNG: Final = "image/png"
_WAIT_S: Final = 600
WAIT: Final = {"IGN_REQUEST_TIMEOUT_S": str(_WAIT_S), "IGN_DEVICE": "cpu"}


def measure(options: argparse.Namespace) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        models = import_network(Path(folder), options.layers)
        shutil.copytree(ROOT / "models" / "mnist", models / "mnist")
        settings = SETTINGS | WAIT | {"IGN_MODEL_DIR": str(models)}
        page = np.random.default_rng(0).integers(
            128, 256, (options.height, options.width), dtype=np.uint8
        )
        request = upload(f"/project?model={NAME}&invert=false", save(Image.fromarray(page)))
        with service(settings) as server:
            line = compare(server, models / NAME / "1" / MODEL_FILE, page, request, options)
        lines = list[Json]()
        for mib in options.inflight_mib:
            with service(settings | {"IGN_MAX_INFLIGHT_BYTES": str(mib << 20)}) as server:
                alone, beside = (
                    asyncio.run(others(server, request, uploads, options))
                    for uploads in (0, options.uploads)
                )
            lines += [{"inflight_mib": mib} | each for each in (alone, beside)]
            ratio = beside["p99_ms"] / alone["p99_ms"]
            name = f"p99 of others over p99 alone, {mib} MiB"
            line["targets"].append(target(name, ratio, at_most=3.0))
    return line | {"others": lines}


def compare(
    server: ServerProcess, model: Path, page: Pixels, request: bytes, options: argparse.Namespace
) -> Json:
    work: dict[str, Callable[[], None]] = {
        "service": partial(send, server, request),
        "plain": plain(model, page),
    }
    ways = {name: partial(timeit, way, number=1) for name, way in work.items()}
    with memory_samples(server.pid, 0.1) as samples:
        rounds = in_turn(ways, options.rounds)
    share = median_ratio(rounds["plain"], rounds["service"])
    return {
        "targets": [target("pixels/s of a page, share of plain onnxruntime", share, at_least=0.8)],
        "page": [
            {"way": way, "seconds": statistics.median(seconds)} for way, seconds in rounds.items()
        ],
        "memory_mib": [{"idle": samples[0][1], "most": max(mib for _, mib in samples)}],
    }


def import_network(folder: Path, layers: int) -> Path:
    """Write a network of random weights, import it, and return the model directory."""
    network = Network(["n", 1, "h", "w"])
    for number in range(layers - 1):
        network.conv(64 if number else 1, 64).add("Relu")
    file = network.conv(64 if layers > 1 else 1, 1, gain=0.3).write(folder / "network.onnx")
    models = folder / "models"
    options = ["--name", NAME, "--models", str(models), "--residual", "--range", "0,1"]
    command = [sys.executable, "-m", "ign", "import", str(file), *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    return models


def plain(file: Path, page: Pixels) -> Callable[[], None]:
    """What runs the tiles of a page alone."""
    model = OnnxModel(file.read_bytes(), threads=available_cpus())
    row = to_rows(page[None], *model.card.range)
    tiling = model.card.tiling((page.shape[0], page.shape[1]))
    tiles = np.empty((tiling.count, model.card.shape[0], *tiling.tile), np.float32)
    for index, tile in enumerate(tiles):
        tiling.cut(row, index, tile)
    batch = model.card.buckets[-1]

    def run() -> None:
        for first in range(0, len(tiles), batch):
            model.run(tiles[first : first + batch])

    return run


def send(server: ServerProcess, request: bytes) -> None:
    answer = asyncio.run(fetch(server.port, request, timeout_s=_WAIT_S))
    if answer.status != 200:
        raise ServerFailed(f"a page got {answer.status}: {answer.body[:300]!r}")


async def others(
    server: ServerProcess, request: bytes, uploads: int, options: argparse.Namespace
) -> Json:
    """Latencies of /generate with the digits, beside uploads that are repeated until these end."""

    async def repeat() -> None:
        while True:
            status = (await fetch(server.port, request, timeout_s=_WAIT_S)).status
            await asyncio.sleep(1.0 if status == HTTPStatus.TOO_MANY_REQUESTS else 0.0)

    repeated = [asyncio.create_task(repeat()) for _ in range(uploads)]
    await asyncio.sleep(options.seconds / 2 if uploads else 0.0)
    load = partial(run_load, server, generate(PNG, 1), 1, options.seconds)
    rounds = [await asyncio.to_thread(load) for _ in range(options.rounds)]
    for each in repeated:
        each.cancel()
    await asyncio.gather(*repeated, return_exceptions=True)
    latencies = {name: max(each_round(rounds, f"ok.{name}")) for name in ("p50_ms", "p99_ms")}
    return {"uploads": uploads, **latencies}


OPTIONS: Final = {
    "layers": 7,
    "width": 2480,
    "height": 3508,
    "rounds": 3,
    "seconds": 10.0,
    "uploads": 10,
    "inflight_mib": [128, 2048],
}

if __name__ == "__main__":
    sys.exit(run_benchmark("tiles", METHOD, measure, OPTIONS))
