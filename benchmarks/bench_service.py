"""The whole service over loopback: its rate as a share of raw onnxruntime, its latency and its CPU time.

    python -m benchmarks.bench_service --results benchmarks/results/service.json

Service, load generator and raw onnxruntime share one machine. Raw onnxruntime runs while the service is idle.
"""

import argparse
import io
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.bench_runtime import raw_session, timed
from benchmarks.harness.common import (
    Json,
    apply_defaults,
    arguments,
    duration,
    in_turn,
    latency,
    median_ratio,
    memory,
    positive,
    report,
    rounded,
    run_benchmark,
    setting,
    target,
)
from benchmarks.harness.processes import ROOT, MemoryWatch, ServerFailed, ServerProcess, free_port, service, serving
from benchmarks.load_generator.load import Spec, measure, request
from service.domain.latents import FloatRows
from service.environment import available_cpus
from service.runtime.onnx_model import OnnxModel

METHOD = (
    "The load generator runs in a process of its own, with keep-alive connections over loopback; medians over "
    "rounds, the ways in turn. share_of_raw: images/s over those of raw onnxruntime at 64 rows with steps=1, round "
    "by round; raw runs one session with all threads. side by side: one session with one thread per core, all at "
    "once. core-milliseconds: CPU time of the service and of the generator per image; permitted_share: the cores "
    "over the sum of both, or side by side where that is less, as a share of raw. idle: one connection; over_sum is "
    "its median over the sum of the medians of hello-world and of a raw call. overload: an open loop at 3 times the "
    "rate of a closed loop measured just before, with an unmeasured first third; goodput is 2xx/s over the mean of "
    "that closed loop and of one measured just after; late: accepted requests that were not answered with 2xx, or "
    "were answered after the deadline"
)
FULL = {"rounds": 5, "seconds": 4.0, "connections": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512], "overload_s": 30.0}
QUICK = {"rounds": 1, "seconds": 0.4, "connections": [1, 32], "overload_s": 1.5}
SETTINGS = {"IGN_ACCESS_LOG": "0"}
ROWS = 64
FEW_CONNECTIONS = 4
OVERLOAD_FACTOR = 3
DEADLINE_S = 30.0  # the service's default
SEEDS = 64
PERCENTILES = ("p50_ms", "p99_ms", "p999_ms")

Raw = Callable[[FloatRows], FloatRows]


def main() -> int:
    options = apply_defaults(parser().parse_args(), full=FULL, quick=QUICK)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # overload needs thousands of connections
    return run_benchmark(measure_all, options)


def measure_all(options: argparse.Namespace) -> Json:
    models = Path(options.models)
    data = (models / options.model / "model.onnx").read_bytes()
    threads = available_cpus()
    model = OnnxModel(data, threads=threads)
    raw = raw_session(data, model, threads)
    picture = png(model)
    asked = SETTINGS | {"IGN_MODEL_DIR": str(models), "IGN_DEFAULT_MODEL": options.model}
    asked |= dict(options.setting)
    with service(asked) as server:
        port = free_port()
        with serving([sys.executable, "-m", "benchmarks.harness.hello", str(port)], port=port, ready="/") as hello:
            idle = idle_latency(server, hello, raw, model, picture, options)
        many = many_rows(server, raw, data, model, options)
        single = single_pictures(server, picture, options)
        overloads = [
            overload(server, "64 rows as npy", generate("application/x-npy"), 16, 512, options),
            overload(server, "one picture, PNG to PNG", project(picture), 64, 2048, options),
        ]
    return report(
        "service",
        METHOD,
        options,
        model={"ref": model.card.ref, "digest": model.digest[:12], "provider": model.provider},
        settings={name: value for name, value in asked.items() if name not in ("IGN_MODEL_DIR", "IGN_DEFAULT_MODEL")},
        targets=targets(idle, many, overloads),
        idle=idle,
        many_rows=many,
        single_pictures=single,
        overload=overloads,
    )


def targets(idle: list[Json], many: list[Json], overloads: list[Json]) -> list[Json]:
    npy, sheet, pngs = many
    judged = [
        target("64 rows as npy, share of raw", npy["share_of_raw"], at_least=0.90),
        target("64 rows as one PNG sheet, share of raw", sheet["share_of_raw"], at_least=0.75),
        target("64 PNGs in JSON, share of what the cores permit", pngs["share_of_permitted"], at_least=0.90),
    ]
    judged += [
        target(f"idle, {line['request']}, over hello-world plus raw call", line["over_sum"], at_most=2.5)
        for line in idle
        if "over_sum" in line
    ]
    for line in overloads:
        name = f"overload × {OVERLOAD_FACTOR}, {line['request']}"
        judged += [
            target(f"{name}: goodput, share of capacity", line["goodput_share"], at_least=0.9),
            target(f"{name}: refusals, p95", line["refused_p95_ms"], at_most=20.0, unit="ms"),
            target(f"{name}: accepted but late", line["late"], at_most=0),
            target(f"{name}: growth of memory", line["growth_mib"], at_most=line["allowed_growth_mib"], unit="MiB"),
        ]
    return judged


def generate(accept: str, n: int = ROWS) -> list[bytes]:
    """Requests for ``n`` rows each, with different seeds."""
    headers = {"Accept": accept, "Content-Type": "application/json"}
    return [request("/generate", b'{"n":%d,"seed":%d,"steps":1}' % (n, seed), headers) for seed in range(SEEDS)]


def project(picture: bytes) -> list[bytes]:
    return [request("/project?steps=1", picture, {"Accept": "image/png", "Content-Type": "image/png"})]


def png(model: OnnxModel) -> bytes:
    """A PNG of the model's size: f of a latent."""
    row = model.run(model.noise.rows(0, 0, 1))[0]
    pixels = np.clip((row + 1) * 127.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    data = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(data, "PNG")
    return data.getvalue()


def idle_latency(
    server: ServerProcess, hello: ServerProcess, raw: Raw, model: OnnxModel, picture: bytes, options: argparse.Namespace
) -> list[Json]:
    """Latency of one request at a time."""
    sent = {
        "/generate n=1 as npy": generate("application/x-npy", 1),
        "/generate n=1 as PNG": generate("image/png", 1),
        "/generate n=1 as JSON": generate("application/json", 1),
        "/project PNG to PNG": project(picture),
    }
    row = model.noise.rows(0, 0, 1)
    ways: dict[str, Callable[[], Json]] = {
        "raw call": lambda: one_call(lambda: raw(row), options.seconds),
        "hello-world": partial(single_connection, hello, [request("/", method="GET")], options),
    }
    ways |= {name: partial(single_connection, server, each, options) for name, each in sent.items()}
    rounds = in_turn(ways, options.rounds)
    lines: list[Json] = []
    for name, results in rounds.items():
        line = {"request": name} | {
            key: rounded(statistics.median(each[key] for each in results)) for key in results[0] if key.endswith("_ms")
        }
        if name in sent:
            under = [a["p50_ms"] + b["p50_ms"] for a, b in zip(rounds["raw call"], rounds["hello-world"], strict=True)]
            line["over_sum"] = rounded(median_ratio([each["p50_ms"] for each in results], under))
        lines.append(line)
    return lines


def single_connection(server: ServerProcess, requests: list[bytes], options: argparse.Namespace) -> Json:
    result = run_load(server, requests, 1, options.seconds)
    return {key: result["ok"][key] for key in PERCENTILES}


def one_call(call: Callable[[], object], seconds: float) -> Json:
    call()
    latencies, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        call()
        latencies.append(time.perf_counter() - start)
    result = latency(latencies)
    return {key: result[key] for key in PERCENTILES}


def many_rows(
    server: ServerProcess, raw: Raw, data: bytes, model: OnnxModel, options: argparse.Namespace
) -> list[Json]:
    """64 rows per request in three formats, beside raw onnxruntime with one session, and with one session per core."""
    forms = {"npy": "application/x-npy", "PNG sheet": "image/png", "64 PNGs in JSON": "application/json"}
    rows = model.noise.rows(0, 0, ROWS)

    def bare() -> Json:
        rate, cpu_s = timed(lambda: raw(rows), ROWS, options.seconds)
        return {"pictures_per_s": rate, "core_ms": cpu_s * 1e3}

    def side_by_side() -> Json:
        with ThreadPoolExecutor(len(each)) as pool:
            result = list(pool.map(lambda one: timed(lambda: one(rows), ROWS, options.seconds), each))
        return {"pictures_per_s": sum(rate for rate, _ in result)}

    each = [raw_session(data, model, 1) for _ in range(available_cpus())]
    ways: dict[str, Callable[[], Json]] = {"raw": bare, "side by side": side_by_side}
    ways |= {
        form: partial(run_load, server, generate(accept), FEW_CONNECTIONS, options.seconds)
        for form, accept in forms.items()
    }
    rounds = in_turn(ways, options.rounds)
    limit = [result["pictures_per_s"] for result in rounds["raw"]]
    most = [result["pictures_per_s"] for result in rounds["side by side"]]
    return [
        form_line(form, rounds[form], rounds["raw"], limit, most)
        | {"raw_side_by_side_per_s": rounded(statistics.median(most))}
        | {"share_of_side_by_side": rounded(median_ratio([result["ok_per_s"] * ROWS for result in rounds[form]], most))}
        for form in forms
    ]


def form_line(form: str, rounds: list[Json], raw: list[Json], limit: list[float], most: list[float]) -> Json:
    rates = [result["ok_per_s"] * ROWS for result in rounds]
    server_ms = statistics.median(result["server_core_ms_per_request"] for result in rounds) / ROWS
    client_ms = statistics.median(result["client_core_ms_per_request"] for result in rounds) / ROWS
    by_cores = available_cpus() * 1e3 / max(1e-9, server_ms + client_ms)
    permitted = min(statistics.median(most), by_cores) / statistics.median(limit)
    share = median_ratio(rates, limit)
    return {
        "form": form,
        "connections": FEW_CONNECTIONS,
        "pictures_per_s": rounded(statistics.median(rates)),
        "raw_pictures_per_s": rounded(statistics.median(limit)),
        "share_of_raw": rounded(share),
        "raw_core_ms": rounded(statistics.median(result["core_ms"] for result in raw)),
        "server_core_ms": rounded(server_ms),
        "client_core_ms": rounded(client_ms),
        "permitted_share": rounded(permitted),
        "share_of_permitted": rounded(share / permitted),
        "p50_ms": rounded(statistics.median(result["ok"]["p50_ms"] for result in rounds)),
        "p99_ms": rounded(statistics.median(result["ok"]["p99_ms"] for result in rounds)),
        "failures": sum(failures(result) for result in rounds),
    }


def single_pictures(server: ServerProcess, picture: bytes, options: argparse.Namespace) -> list[Json]:
    """One small image per request, PNG to PNG, by number of connections."""
    ways = {n: partial(run_load, server, project(picture), n, options.seconds) for n in options.connections}
    rounds = in_turn({str(n): way for n, way in ways.items()}, options.rounds)
    return [
        {"connections": int(n), "requests_per_s": rounded(statistics.median(each["ok_per_s"] for each in results))}
        | {key: rounded(statistics.median(each["ok"][key] for each in results)) for key in PERCENTILES}
        | {
            f"{side}_core_ms": rounded(statistics.median(each[f"{side}_core_ms_per_request"] for each in results))
            for side in ("server", "client")
        }
        | {"failures": sum(failures(each) for each in results)}
        for n, results in rounds.items()
    ]


def overload(
    server: ServerProcess, name: str, requests: list[bytes], busy: int, connections: int, options: argparse.Namespace
) -> Json:
    """The goodput at `OVERLOAD_FACTOR` times the capacity.

    Args:
        busy: connections of the closed loop that measures the capacity.
        connections: of the open loop; more than the service accepts in flight, so that the generator never waits.
    """
    measure_capacity = partial(run_load, server, requests, busy, max(options.seconds, options.overload_s / 6))
    before = measure_capacity()["ok_per_s"]
    flood = partial(run_load, server, requests, connections, rate=max(1.0, OVERLOAD_FACTOR * before))
    flood(options.overload_s / 3)  # memory reaches its level before it is measured
    with MemoryWatch(server.pid, every_s=0.25) as watch:
        result = flood(options.overload_s)
    capacity = statistics.mean((before, measure_capacity()["ok_per_s"]))  # the speed of a machine may change in between
    refused = result["refused"]
    others = {
        status: each["count"] for status, each in result["statuses"].items() if status not in ("200", "429", "503")
    }
    lost = sum(result["errors"].values()) + result["unanswered"] - result["unsent"] + sum(others.values())
    ok = result["ok"]
    in_time_ms = DEADLINE_S * 1e3 + result["lateness"].get(
        "max_ms", 0.0
    )  # the service counts from the arrival of the headers
    kept = memory(watch.samples)
    return {
        "request": name,
        "capacity_per_s": rounded(capacity),
        "asked_per_s": rounded(OVERLOAD_FACTOR * before),
        "goodput_per_s": result["ok_per_s"],
        "goodput_share": rounded(result["ok_per_s"] / max(1e-9, capacity)),
        "ok": ok["count"],
        "refused": refused["count"],
        "refused_p50_ms": refused.get("p50_ms"),
        "refused_p95_ms": refused.get("p95_ms"),
        "refused_p99_ms": refused.get("p99_ms"),
        "late": lost + (ok.get("max_ms", 0.0) > in_time_ms),
        "unsent": result["unsent"],
        "ok_p50_ms": ok.get("p50_ms"),
        "ok_p99_ms": ok.get("p99_ms"),
        "ok_max_ms": ok.get("max_ms"),
        "lateness_p50_ms": result["lateness"].get("p50_ms"),
        "lateness_p99_ms": result["lateness"].get("p99_ms"),
        "median_mib": kept["median_mib"],
        "slope_mib_per_minute": kept["slope_mib_per_minute"],
        "growth_mib": kept["growth_mib"],
        "allowed_growth_mib": kept["allowed_growth_mib"],
        "statuses": ", ".join(f"{status}: {each['count']}" for status, each in result["statuses"].items()),
    }


def run_load(
    server: ServerProcess, requests: list[bytes], connections: int, seconds: float, rate: float | None = None
) -> Json:
    spec = Spec(
        port=server.port,
        requests=requests,
        connections=connections,
        seconds=seconds,
        warmup_s=min(0.5, seconds / 2),
        rate=rate,
        server_pid=server.pid,
    )
    result: dict[str, Any] = measure(spec)
    if rate is None and not result["ok"]["count"]:
        raise ServerFailed(f"no request was answered: {result['samples']} {result['errors']}")
    return result


def failures(result: Json) -> int:
    """The number of requests that were not answered with 2xx."""
    bad = sum(each["count"] for status, each in result["statuses"].items() if not status.startswith("2"))
    return int(bad + result["unanswered"] + sum(result["errors"].values()))


def parser() -> argparse.ArgumentParser:
    cli = arguments("Measure the whole service over loopback.")
    cli.add_argument("--models", default=str(ROOT / "models"), help="model directory (default: the shipped one)")
    cli.add_argument("--model", default="mnist/3", help="name/version (default mnist/3)")
    cli.add_argument(
        "--setting", type=setting, action="append", default=[], metavar="IGN_NAME=VALUE", help="a service setting"
    )
    cli.add_argument("--rounds", type=positive, help="rounds (default 5; quick 1)")
    cli.add_argument("--seconds", type=duration, help="seconds per measurement and round (default 4; quick 0.4)")
    cli.add_argument(
        "--connections", type=positive, nargs="+", help="for single pictures (default 1 … 512; quick 1, 32)"
    )
    cli.add_argument("--overload-s", type=duration, help="seconds of each overload (default 30; quick 1.5)")
    return cli


if __name__ == "__main__":
    sys.exit(main())
