"""The whole service over loopback: its rate as a share of raw onnxruntime, its latency and its CPU
time.

    python -m benchmarks.bench_service --results benchmarks/results/service.json

Service, load generator and raw onnxruntime share one machine. Raw onnxruntime runs while the
service is idle.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from benchmarks.bench_runtime import raw_session, timed
from benchmarks.harness import common
from benchmarks.harness.common import (
    MODEL,
    Json,
    each_round,
    in_turn,
    median_of,
    median_ratio,
    rounded,
    target,
)
from benchmarks.harness.device import gpu
from benchmarks.harness.processes import ServerProcess, free_port, service, serving
from benchmarks.load_generator.load import run_load, summary
from benchmarks.load_generator.messages import JSON, NPY, disc, encoded, get, post, upload
from service.domain.latents import FloatRows
from service.environment import available_cpus, prepare_process
from service.runtime.onnx_model import OnnxModel

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
PERCENTILES: Final = ("p50_ms", "p99_ms", "p999_ms")

Raw = Callable[[FloatRows], FloatRows]


def generate(accept: str, n: int = ROWS) -> list[bytes]:
    return [post("/generate", {"n": n, "seed": seed, "steps": 1}, accept) for seed in range(SEEDS)]


def project(size: int = 28) -> list[bytes]:
    """One request with an image of the model's size, PNG to PNG."""
    return [upload("/project?steps=1", encoded(disc(size=size)))]


def measure(options: argparse.Namespace) -> Json:
    prepare_process()
    data = MODEL.read_bytes()
    model = OnnxModel(data, device=options.device, threads=available_cpus())
    raw = raw_session(data, model, available_cpus())
    image = project(model.card.shape[-1])
    with service(SETTINGS | {"IGN_DEVICE": options.device}) as server:
        idle = idle_latency(server, raw, model, image, options)
        many = many_rows(server, raw, model, options)
        single = single_images(server, image, options)
    about = {"ref": model.card.ref, "digest": model.digest[:12], "provider": model.provider}
    tables = {"idle": idle, "many_rows": many, "single_images": single}
    return {"model": about, "device": gpu(), "targets": targets(idle, many), **tables}


def targets(idle: list[Json], many: list[Json]) -> list[Json]:
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
    return judged


def idle_latency(
    server: ServerProcess,
    raw: Raw,
    model: OnnxModel,
    image: list[bytes],
    options: argparse.Namespace,
) -> list[Json]:
    """Latency of one request at a time."""
    forms = {"npy": NPY, "PNG": "image/png", "JSON": JSON}
    sent = {f"/generate n=1 as {form}": generate(forms[form], 1) for form in forms}
    sent["/project PNG to PNG"] = image
    row = model.noise.rows(0, 0, 1)
    port = free_port()
    with serving(
        [sys.executable, "-m", "benchmarks.harness.hello", str(port)], port=port, ready="/"
    ) as hello:
        ways: dict[str, Callable[[], Json]] = {
            "raw call": lambda: {"ok": one_call(lambda: raw(row), options.seconds)},
            "hello-world": partial(run_load, hello, [get("/")], 1, options.seconds),
        }
        ways |= {
            name: partial(run_load, server, each, 1, options.seconds) for name, each in sent.items()
        }
        rounds = in_turn(ways, options.rounds)
    parts = (each_round(rounds[name], "ok.p50_ms") for name in ("raw call", "hello-world"))
    under = [sum(both) for both in zip(*parts, strict=True)]
    lines: list[Json] = []
    for name, results in rounds.items():
        line = {"request": name} | {key: median_of(results, f"ok.{key}") for key in PERCENTILES}
        if name in sent:
            line["over_sum"] = median_ratio(each_round(results, "ok.p50_ms"), under)
        lines.append(line)
    return lines


def one_call(call: Callable[[], object], seconds: float) -> Json:
    call()
    latencies = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        call()
        latencies.append(time.perf_counter() - start)
    return common.latency(latencies)


def many_rows(
    server: ServerProcess, raw: Raw, model: OnnxModel, options: argparse.Namespace
) -> list[Json]:
    """64 rows per request in three formats, beside raw onnxruntime."""
    rows = model.noise.rows(0, 0, ROWS)
    ways: dict[str, Callable[[], Json]] = {
        "raw": lambda: dict(
            zip(
                ("rows_per_s", "cpu_s"),
                timed(lambda: raw(rows), ROWS, options.seconds),
                strict=True,
            )
        )
    }
    for form, (accept, _) in FORMS.items():
        ways[form] = partial(run_load, server, generate(accept), FEW_CONNECTIONS, options.seconds)
    rounds = in_turn(ways, options.rounds)
    bare = rounds.pop("raw")
    limit = each_round(bare, "rows_per_s")
    raw_core_ms = median_of(bare, "cpu_s") * 1e3
    lines = []
    for form, results in rounds.items():
        rates = [rate * ROWS for rate in each_round(results, "ok_per_s")]
        line: Json = {
            "form": form,
            "images_per_s": statistics.median(rates),
            "raw_images_per_s": statistics.median(limit),
        }
        line |= {"share_of_raw": median_ratio(rates, limit), "raw_core_ms": raw_core_ms} | summary(
            results
        )
        line |= {f"{side}_core_ms": line[f"{side}_core_ms"] / ROWS for side in ("server", "client")}
        lines.append({name: rounded(value) for name, value in line.items()})
    return lines


def single_images(
    server: ServerProcess, image: list[bytes], options: argparse.Namespace
) -> list[Json]:
    """One small image per request, PNG to PNG, by number of connections."""
    ways = {
        str(n): partial(run_load, server, image, n, options.seconds) for n in options.connections
    }
    return [
        {"connections": int(n)} | summary(results)
        for n, results in in_turn(ways, options.rounds).items()
    ]


OPTIONS: Final = {
    "device": ("auto",),
    "rounds": (5, 1),
    "seconds": (4.0, 0.4),
    "connections": ([1, 2, 4, 8, 16, 32, 64, 128, 256, 512], [1, 32]),
}

if __name__ == "__main__":
    sys.exit(common.run_benchmark("service", METHOD, measure, OPTIONS))
