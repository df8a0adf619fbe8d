"""The goodput under a storm of clients that ignore Retry-After, as a share of that with a tenth of
them.

python -m benchmarks.reliability.storm --results benchmarks/results/storm.json
"""

import argparse
import sys
from functools import partial
from typing import Final, NamedTuple

from benchmarks.bench_service import generate, project
from benchmarks.harness.common import (
    Json,
    each_round,
    in_turn,
    median_of,
    median_ratio,
    run_benchmark,
    target,
)
from benchmarks.harness.processes import ServerProcess, raise_file_limit, service
from benchmarks.load_generator.load import failures, run_load
from benchmarks.load_generator.messages import NPY, with_headers

METHOD: Final = (
    "Each client comes back at most `pause_s` seconds after any answer, also after a 429 or "
    "503. kept: on its connection; new: each request on a connection of its own. image: "
    "/project, PNG to PNG; 64 rows: /generate as npy, with an eighth of the clients. Few and "
    "many clients take turns; goodput is 200/s; share is the median over the rounds of many "
    "over few. The generator shares the machine with the service"
)


class Storm(NamedTuple):
    """What the clients do."""

    request: str
    connections: str
    pause_s: float
    least_share: float

    def __str__(self) -> str:
        return f"{self.request}, {self.connections} connections, pause ≤ {self.pause_s:g} s"


STORMS: Final = (
    Storm("image", "kept", 0.5, 0.8),
    Storm("image", "new", 0.5, 0.8),
    Storm("image", "kept", 0.0, 0.8),
    Storm("64 rows", "kept", 0.0, 0.9),
)


def measure(options: argparse.Namespace) -> Json:
    raise_file_limit()
    with service({}) as server:
        judged = [(storm, measured(server, storm, options)) for storm in STORMS]
    targets = [
        target(f"goodput, {storm}, share", line["share"], at_least=storm.least_share)
        for storm, line in judged
    ]
    targets += [target(f"{storm}, errors", line["errors"], at_most=0) for storm, line in judged]
    return {"targets": targets, "storms": [line for _, line in judged]}


def measured(server: ServerProcess, storm: Storm, options: argparse.Namespace) -> Json:
    """Few and many clients in turn."""
    requests, share = (project(), 1) if storm.request == "image" else (generate(NPY), 8)
    if storm.connections == "new":
        requests = [with_headers(data, {"Connection": "close"}) for data in requests]
    load = partial(
        run_load, server, requests, seconds=options.seconds, warmup_s=2.0, pause_s=storm.pause_s
    )
    clients = {"few": options.few, "many": options.many}
    ways = {
        name: partial(load, connections=-(-number // share)) for name, number in clients.items()
    }
    few, many = in_turn(ways, options.rounds).values()
    return {
        "request": storm.request,
        "connections": storm.connections,
        "pause_s": storm.pause_s,
        "few_goodput_per_s": median_of(few, "ok_per_s"),
        "many_goodput_per_s": median_of(many, "ok_per_s"),
        "share": median_ratio(each_round(many, "ok_per_s"), each_round(few, "ok_per_s")),
        "many_core_ms_per_answer": median_of(many, "server_core_ms_per_request"),
        "errors": sum(failures(each, ("200", "429", "503")) for each in (*few, *many)),
    }


OPTIONS: Final = {
    "rounds": 3,
    "seconds": 10.0,
    "few": 200,
    "many": 2000,
}

if __name__ == "__main__":
    sys.exit(run_benchmark("storm", METHOD, measure, OPTIONS, judge=True))
