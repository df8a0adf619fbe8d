"""The goodput under a storm of clients that ignore Retry-After, as a share of that with a tenth of them.

    python -m benchmarks.reliability.storm --results benchmarks/results/storm.json

Exits with status 0 if every target is met, else with 1.
"""

import argparse
import io
import resource
import statistics
import sys
import threading
import time
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.bench_service import generate
from benchmarks.harness.common import (
    Json,
    apply_defaults,
    arguments,
    duration,
    in_turn,
    latency,
    median_ratio,
    positive,
    report,
    rounded,
    run_benchmark,
    setting,
    target,
)
from benchmarks.harness.processes import ServerProcess, service
from benchmarks.load_generator.load import Spec, measure, request

METHOD = (
    "Each client comes back at most `pause_s` seconds after any answer, also after a 429 or 503. kept: on its "
    "connection; new: each request on a connection of its own. picture: /project, PNG to PNG; 64 rows: /generate as "
    "npy, with an eighth of the clients. Few and many clients take turns; goodput is 200/s; share is the median over "
    "the rounds of many over few. The generator shares the machine with the service. healthz: a GET every 0.1 s "
    "meanwhile, on a new connection."
)
FULL = {"rounds": 3, "seconds": 10.0, "few": 200, "many": 2000}
QUICK = {"rounds": 1, "seconds": 1.0, "few": 20, "many": 200}
PROBE_EVERY_S = 0.1


class Storm(NamedTuple):
    """What the clients do."""

    request: Literal["picture", "64 rows"]
    connections: Literal["kept", "new"]
    pause_s: float
    least_share: float

    def __str__(self) -> str:
        return f"{self.request}, {self.connections} connections, pause ≤ {self.pause_s:g} s"


STORMS = (
    Storm("picture", "kept", 0.5, 0.8),
    Storm("picture", "new", 0.5, 0.8),
    Storm("picture", "kept", 0.0, 0.8),
    Storm("64 rows", "kept", 0.0, 0.9),
)


def main() -> int:
    options = apply_defaults(parser().parse_args(), full=FULL, quick=QUICK)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return run_benchmark(measure_all, options, judge=True)


def measure_all(options: argparse.Namespace) -> Json:
    with service(dict(options.setting)) as server:
        lines = [measured(server, storm, options) for storm in STORMS]
    judged = list(zip(STORMS, lines, strict=True))
    targets = [target(f"goodput, {storm}, share", line["share"], at_least=storm.least_share) for storm, line in judged]
    targets += [target(f"{storm}, errors", line["errors"], at_most=0) for storm, line in judged]
    return report("storm", METHOD, options, targets=targets, storms=lines)


def measured(server: ServerProcess, storm: Storm, options: argparse.Namespace) -> Json:
    """Few and many clients in turn."""
    close = {"Connection": "close"} if storm.connections == "new" else {}
    requests = [request("/project?steps=1", picture(), {"Accept": "image/png", "Content-Type": "image/png"} | close)]
    clients = {"few": options.few, "many": options.many}
    if storm.request == "64 rows":
        requests, clients = generate("application/x-npy"), {name: -(-each // 8) for name, each in clients.items()}
    ways = {
        name: partial(one_run, server, requests, number, storm.pause_s, options) for name, number in clients.items()
    }
    rounds = in_turn(ways, options.rounds)
    few, many = rounds["few"], rounds["many"]
    line: Json = {"request": storm.request, "connections": storm.connections, "pause_s": storm.pause_s}
    for name, results in rounds.items():
        line |= {
            f"{name}_goodput_per_s": rounded(statistics.median(each["ok_per_s"] for each in results)),
            f"{name}_core_ms_per_answer": rounded(
                statistics.median(each["server_core_ms_per_request"] for each in results)
            ),
            f"{name}_healthz_p99_ms": max(each["healthz"]["p99_ms"] for each in results),
        }
    line["share"] = rounded(median_ratio([each["ok_per_s"] for each in many], [each["ok_per_s"] for each in few]))
    line["refused_per_s"] = rounded(statistics.median((each["requests_per_s"] - each["ok_per_s"]) for each in many))
    line["refused_p50_ms"] = rounded(statistics.median(each["refused"].get("p50_ms", 0.0) for each in many))
    line["ok_p99_ms"] = rounded(statistics.median(each["ok"].get("p99_ms", 0.0) for each in many))
    line["errors"] = sum(
        sum(each["errors"].values())
        + each["unanswered"]
        + sum(of["count"] for status, of in each["statuses"].items() if status not in ("200", "429", "503"))
        for each in (*few, *many)
    )
    return line


def one_run(
    server: ServerProcess, requests: list[bytes], clients: int, pause_s: float, options: argparse.Namespace
) -> Json:
    spec = Spec(
        port=server.port,
        requests=requests,
        connections=clients,
        seconds=options.seconds,
        warmup_s=min(2.0, options.seconds),
        pause_s=pause_s,
        server_pid=server.pid,
    )
    over, seconds = threading.Event(), []

    def probe() -> None:
        while not over.wait(PROBE_EVERY_S):
            start = time.perf_counter()
            server.get("/healthz")
            seconds.append(time.perf_counter() - start)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    try:
        result = measure(spec)
    finally:
        over.set()
        thread.join()
    return result | {"healthz": latency(seconds)}


def picture() -> bytes:
    """A PNG of the model's size."""
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(28, 28), dtype=np.uint8)).save(data, "PNG")
    return data.getvalue()


def parser() -> argparse.ArgumentParser:
    cli = arguments("Measure the goodput under a storm of clients that ignore Retry-After.")
    cli.add_argument("--rounds", type=positive, help="rounds (default 3; quick 1)")
    cli.add_argument("--seconds", type=duration, help="seconds of each measurement (default 10; quick 1)")
    cli.add_argument("--few", type=positive, help="clients without a storm (default 200; quick 20)")
    cli.add_argument("--many", type=positive, help="clients in the storm (default 2000; quick 200)")
    cli.add_argument(
        "--setting", type=setting, action="append", default=[], metavar="IGN_NAME=VALUE", help="a service setting"
    )
    return cli


if __name__ == "__main__":
    sys.exit(main())
