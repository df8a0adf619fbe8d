"""The whole service over loopback: its rate as a share of raw onnxruntime, its latency and its CPU
time.

    python -m benchmarks.bench_service --results benchmarks/results/service.json

Service, load generator and raw onnxruntime share one machine. Raw onnxruntime runs while the
service is idle.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import onnxruntime as ort

from benchmarks.harness import common
from benchmarks.harness.common import (
    MODEL,
    Json,
    each_round,
    in_turn,
    median_of,
    median_ratio,
    target,
)
from benchmarks.harness.device import gpu
from benchmarks.harness.processes import ServerProcess, free_port, service, serving
from benchmarks.load_generator.load import SHOWN, run_load, summary
from benchmarks.load_generator.messages import JSON, NPY, disc, get, post, upload
from service.artifact.card import INPUT, OUTPUT
from service.domain.latents import FloatRows, NoiseSource
from service.environment import available_cpus, prepare_process
from service.runtime.onnx_model import OnnxModel
from tests.helpers.pictures import save

METHOD = (
    "The load generator runs in a process of its own, with keep-alive connections over "
    "loopback; medians over rounds, the ways in turn. share_of_raw: images/s over "
    "those of raw onnxruntime at 64 rows with steps=1, round by round; raw runs one session "
    "with all threads. core-milliseconds: CPU "
    "time of the service and of the generator per image. idle: one connection; over_sum is "
    "its median over the sum of the medians of hello-world and of a raw call"
)
SETTINGS: Final = {"IGN_ACCESS_LOG": "0"}
ROWS: Final = 64
FEW_CONNECTIONS: Final = 4
SEEDS: Final = 64
FORMS: Final = {
    "npy": (NPY, 0.90),
    "PNG sheet": ("image/png", 0.75),
    "64 PNGs in JSON": (JSON, 0.75),
}

Raw = Callable[[FloatRows], FloatRows]


def generate(accept: str, n: int = ROWS) -> list[bytes]:
    return [post("/generate", {"n": n, "seed": seed, "steps": 1}, accept) for seed in range(SEEDS)]


def project() -> list[bytes]:
    """One request with an image of the model's size, PNG to PNG."""
    return [upload("/project?steps=1", save(disc(size=28)))]


def measure(options: argparse.Namespace) -> Json:
    prepare_process()
    data = MODEL.read_bytes()
    model = OnnxModel(data, device=options.device, threads=available_cpus())
    raw = raw_session(data, model)
    with service(SETTINGS | {"IGN_DEVICE": options.device}) as server:
        idle = idle_latency(server, raw, model, options)
        many = many_rows(server, raw, model, options)
        single = single_images(server, options)
    judged = [
        target(
            f"64 rows as {line['form']}, share of raw",
            line["share_of_raw"],
            at_least=FORMS[line["form"]][1],
        )
        for line in many
    ]
    judged += [
        target(
            f"idle, {line['request']}, over hello-world plus raw call",
            line["over_sum"],
            at_most=2.5,
        )
        for line in idle
        if "over_sum" in line
    ]
    return {
        "model": {"ref": model.card.ref, "digest": model.digest[:12], "provider": model.provider},
        "device": gpu(),
        "targets": judged,
        "idle": idle,
        "many_rows": many,
        "single_images": single,
    }


def raw_session(data: bytes, model: OnnxModel) -> Raw:
    """A plain onnxruntime session with all threads, on the provider that the model uses."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(data, options, providers=[model.provider])

    def run(rows: FloatRows) -> FloatRows:
        return session.run([OUTPUT], {INPUT: rows})[0]

    return run


def repeated(call: Callable[[], object], seconds: float) -> Json:
    """The report of a load, of calls one after another."""
    call()
    latencies = list[float]()
    cpu = time.process_time()
    began = time.perf_counter()
    while (start := time.perf_counter()) < began + seconds:
        call()
        latencies.append(time.perf_counter() - start)
    count = len(latencies)
    return {
        "ok": common.latency(latencies),
        "ok_per_s": count / (time.perf_counter() - began),
        "server_core_ms_per_request": (time.process_time() - cpu) / count * 1e3,
    }


def idle_latency(
    server: ServerProcess, raw: Raw, model: OnnxModel, options: argparse.Namespace
) -> list[Json]:
    """Latency of one request at a time."""
    forms = {"npy": NPY, "PNG": "image/png", "JSON": JSON}
    sent = {f"/generate n=1 as {form}": generate(media, 1) for form, media in forms.items()}
    sent["/project PNG to PNG"] = project()
    row = NoiseSource(model.card.shape).rows(0, 0, 1)
    port = free_port()
    with serving(
        [sys.executable, "-m", "benchmarks.harness.hello", str(port)], port=port, ready="/"
    ) as hello:
        ways: dict[str, Callable[[], Json]] = {
            "raw call": partial(repeated, partial(raw, row), options.seconds),
            "hello-world": partial(run_load, hello, [get("/")], 1, options.seconds),
        }
        for name, requests in sent.items():
            ways[name] = partial(run_load, server, requests, 1, options.seconds)
        rounds = in_turn(ways, options.rounds)
    parts = (each_round(rounds[name], "ok.p50_ms") for name in ("raw call", "hello-world"))
    under = [sum(both) for both in zip(*parts, strict=True)]
    lines: list[Json] = []
    for name, results in rounds.items():
        line = {"request": name} | {key: median_of(results, f"ok.{key}") for key in SHOWN}
        if name in sent:
            line["over_sum"] = median_ratio(each_round(results, "ok.p50_ms"), under)
        lines.append(line)
    return lines


def many_rows(
    server: ServerProcess, raw: Raw, model: OnnxModel, options: argparse.Namespace
) -> list[Json]:
    """64 rows per request in three formats, beside raw onnxruntime; figures are of an image."""
    rows = NoiseSource(model.card.shape).rows(0, 0, ROWS)
    ways: dict[str, Callable[[], Json]] = {
        "raw": partial(repeated, partial(raw, rows), options.seconds)
    }
    for form, (accept, _) in FORMS.items():
        sent = generate(accept)
        ways[form] = partial(run_load, server, sent, FEW_CONNECTIONS, options.seconds)
    rounds = in_turn(ways, options.rounds)
    bare = rounds.pop("raw")
    lines = []
    for form, results in rounds.items():
        figures = summary(results)
        lines.append(
            {
                "form": form,
                "images_per_s": figures["requests_per_s"] * ROWS,
                "raw_images_per_s": median_of(bare, "ok_per_s") * ROWS,
                "share_of_raw": median_ratio(
                    each_round(results, "ok_per_s"), each_round(bare, "ok_per_s")
                ),
                "raw_core_ms": median_of(bare, "server_core_ms_per_request") / ROWS,
                **figures,
                "server_core_ms": figures["server_core_ms"] / ROWS,
                "client_core_ms": figures["client_core_ms"] / ROWS,
            }
        )
    return lines


def single_images(server: ServerProcess, options: argparse.Namespace) -> list[Json]:
    """One small image per request, PNG to PNG, by number of connections."""
    ways = {
        str(n): partial(run_load, server, project(), n, options.seconds)
        for n in options.connections
    }
    rounds = in_turn(ways, options.rounds)
    return [{"connections": int(n)} | summary(results) for n, results in rounds.items()]


OPTIONS: Final = {
    "device": "auto",
    "rounds": 5,
    "seconds": 4.0,
    "connections": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
}

if __name__ == "__main__":
    sys.exit(common.run_benchmark("service", METHOD, measure, OPTIONS))
