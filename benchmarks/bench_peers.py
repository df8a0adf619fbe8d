"""This service beside other serving systems, with the same model file, machine and request bodies.

    python -m benchmarks.bench_peers --results benchmarks/results/peers.json
    python -m benchmarks.bench_peers --quick --only mosec fastapi

Every system has its own environment (--environments) and the settings that its documentation recommends
(benchmarks/peers/*_server.py name and explain them). Its batching is the one of the settings in
benchmarks/peers/servers.py with the highest measured rate over all loads. All systems run the same onnxruntime release
with one thread per copy of the model, and must return the same images as this service, or they are not measured.
Compare the ratios of one run, not the figures of two runs. Progress and tables go to stderr, JSON to stdout.
"""

import argparse
import base64
import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.harness.common import (
    Json,
    apply_defaults,
    arguments,
    duration,
    positive,
    report,
    rounded,
    spread,
    write,
)
from benchmarks.harness.tables import table, verdict
from benchmarks.peers import common, compare, environments, raw
from benchmarks.peers.one_run import Order, namespace_prefix, run_in_subprocess
from benchmarks.peers.payloads import PAYLOADS, PNG, RAW
from benchmarks.peers.servers import ALL, OURS, PEERS, SERVICE, Batching, Entry, entries

METHOD: Final = (
    "Closed loop. In every round the entries take turns, in reverse order every second round: the server starts "
    "alone, its answers to all bodies, sent 16 at a time, are compared with the answers of this service (PNG: the "
    "same pixels; raw: within 1e-5), then every load runs for `seconds` after a warm-up. `×n` has n copies of the "
    "model with one thread each; `as it comes` is this service with its default settings. No server writes an access "
    "log. Requests/s counts answers with 200. Figures are medians over the rounds, ratios are medians of the ratios of "
    "each round. CPU time includes all processes of the server. Raw onnxruntime runs at 64 rows in as many "
    "single-threaded processes as the entry has copies of the model."
)
FULL: Final = {
    "processes": [1, 2],
    "connections": [32, 256],
    "seconds": 6.0,
    "warmup_s": 1.0,
    "rounds": 3,
    "tune_s": 2.0,
    "bodies": 32,
}
QUICK: Final = {
    "processes": [1],
    "connections": [32],
    "seconds": 1.0,
    "warmup_s": 0.3,
    "rounds": 1,
    "tune_s": 0.0,
    "bodies": 8,
}
_RAW_ROWS: Final = 64
_DIRECTORIES: Final = re.compile(r"(?<![\w/])/(?:data|home|mnt|opt|root|srv|tmp|Users|usr|var|work)/(?:[^\s/'\":]+/)*")


def main() -> int:
    options = apply_defaults(parser().parse_args(), full=FULL, quick=QUICK)
    folder = Path(options.environments)
    model = Path(options.models) / options.model / "model.onnx"
    if environments.inside_repository(folder):
        return refuse(f"--environments {folder}: must be outside the repository")
    if not model.is_file():
        return refuse(f"--model {options.model}: there is no {model}")
    try:
        result = Benchmark(options, model).run(folder)
    except RuntimeError as exc:
        return refuse(str(exc))
    write(result, options.results)
    return 0


class Benchmark:
    """One run.

    Args:
        options: as parsed.
        model: the file that all systems serve.
    """

    def __init__(self, options: argparse.Namespace, model: Path) -> None:
        self.options, self.model = options, model
        self.server_cpus, self.client_cpus = cpus(options.client_cpus)
        self.bodies = bodies(model, options.bodies)
        self.expected: dict[str, list[str]] = {}
        self.skipped: dict[str, str] = {}
        self.environments: dict[str, environments.Environment] = {}
        self.batching: dict[Entry, Batching] = {}
        self.tuned: dict[str, dict[str, float]] = {}
        self.wires: dict[str, dict[str, str]] = {}

    def run(self, folder: Path) -> Json:
        """Install, tune, measure; returns the report.

        Raises:
            RuntimeError: this service or raw onnxruntime failed, so there is nothing to compare with.
        """
        options, start = self.options, time.monotonic()
        names = [OURS, *(peer.name for peer in PEERS if not options.only or peer.name in options.only)]
        self.install(names, folder)
        taking_part = [entry for entry in entries(names, options.processes) if entry.name not in self.skipped]
        self.take_reference()
        for entry in taking_part:
            self.tune(entry)
        reports: dict[Entry, list[Json]] = {entry: [] for entry in taking_part}
        raws: dict[int, list[float]] = {number: [] for number in {1, *options.processes}}
        for number in range(options.rounds):
            began = time.monotonic()
            self.round(number, reports, raws)
            if began - start + 2 * (time.monotonic() - began) > options.minutes * 60 and number + 1 < options.rounds:
                say(f"{options.minutes} minutes are not enough for more than {number + 1} rounds")
                break
        whole = {entry: result for entry, result in reports.items() if str(entry) not in self.skipped}
        return self.report(whole, raws)

    def install(self, names: Sequence[str], folder: Path) -> None:
        """Create the missing environments, one after another."""
        for name in names:
            say(f"environment of {name}")
            try:
                self.environments[name] = environments.environment(ALL[name], folder)
            except environments.NotInstalled as exc:
                self.skip(name, f"cannot be installed: {exc}")

    def take_reference(self) -> None:
        """Record the answers of this service, which all other answers are compared with."""
        entry = Entry(name=OURS, processes=1)
        result = self.turn(entry, SERVICE.batching[0], connections=[], seconds=1.0)
        if "failed" in result:
            raise RuntimeError(f"this service does not serve: {result['failed']}")
        self.expected = result["answers"]

    def tune(self, entry: Entry) -> None:
        """Choose the batching of an entry by its measured rate."""
        choices = entry.server_spec.batching
        self.batching[entry] = choices[0]
        if len(choices) == 1 or not self.options.tune_s:
            return
        rates: dict[Batching, float] = {}
        for choice in choices:
            result = self.turn(entry, choice, connections=self.options.connections, seconds=self.options.tune_s)
            loads = [load for by in result.get("loads", {}).values() for load in by.values()]
            if loads and all(load["ok_per_s"] for load in loads):
                rates[choice] = math.prod(load["ok_per_s"] for load in loads) ** (1 / len(loads))
            say(f"{entry}, {choice}: {result.get('failed') or f'{rates.get(choice, 0):.0f} requests/s'}")
        if rates:
            self.batching[entry] = max(rates, key=lambda choice: rates[choice])
        self.tuned[str(entry)] = {str(choice): rounded(rate) for choice, rate in rates.items()}

    def round(self, number: int, reports: dict[Entry, list[Json]], raws: dict[int, list[float]]) -> None:
        """Measure raw onnxruntime and every entry once."""
        options = self.options
        for processes, result in raws.items():
            seconds = max(0.5, options.seconds / 3)
            result.append(
                raw.rows_per_s(self.model, rows=_RAW_ROWS, seconds=seconds, processes=processes, cpus=self.server_cpus)
            )
            say(f"round {number + 1}: raw onnxruntime ×{processes}: {result[-1]:.0f} rows/s")
        order = list(reports) if number % 2 == 0 else list(reversed(reports))
        for entry in order:
            if str(entry) in self.skipped:
                continue
            turn = self.turn(entry, self.batching[entry], connections=options.connections, seconds=options.seconds)
            self.wires.setdefault(entry.name, turn.get("wires", {}))
            if "failed" in turn:
                self.skip(str(entry), turn["failed"])
                continue
            reports[entry].append(turn)
            say(f"round {number + 1}: {entry}: {rates(turn)}")
            if any(not load["ok_per_s"] for by in turn["loads"].values() for load in by.values()):
                self.skip(str(entry), "no request of a load was answered with 200")

    def turn(self, entry: Entry, batching: Batching, *, connections: Sequence[int], seconds: float) -> Json:
        """Run one entry; a failed run is repeated once."""
        options = self.options
        order = Order(
            name=entry.name,
            processes=entry.processes,
            rows=batching.rows,
            wait_ms=batching.wait_ms,
            python=self.environments[entry.name].python,
            models=str(Path(options.models).resolve()),
            model=options.model,
            bodies=self.bodies,
            expected=self.expected,
            connections=connections,
            seconds=seconds,
            warmup_s=min(options.warmup_s, seconds / 2),
            server_cpus=self.server_cpus,
            client_cpus=self.client_cpus,
            start_s=options.start_s,
        )
        result = run_in_subprocess(order)
        return run_in_subprocess(order) if "failed" in result else result

    def skip(self, name: str, reason: str) -> None:
        """Exclude an entry, with the reason."""
        say(f"skipped: {name}: {reason}")
        self.skipped[name] = without_paths(reason)

    def report(self, reports: compare.Reports, raws: Mapping[int, Sequence[float]]) -> Json:
        """The result."""
        options = self.options
        tables: dict[str, list[Json]] = {}
        statuses: dict[str, Json] = {}
        ratios: list[Json] = []
        for payload in PAYLOADS:
            for connections in options.connections:
                name = f"{payload}_at_{connections}_connections"
                lines = compare.lines(reports, raws, payload, connections)
                fastest = sorted(lines.items(), key=lambda pair: pair[1]["requests_per_s"], reverse=True)
                tables[name] = [{"entry": str(entry)} | line for entry, line in fastest]
                statuses[name] = {
                    str(entry): compare.statuses(compare.loads(result, payload, connections))
                    for entry, result in reports.items()
                }
                ratios += compare.ratios(reports, raws, payload, connections)
        targets = list(compare.targets(ratios))
        shown = tables | {"ratios": ratios, "targets": [verdict(each) for each in targets]}
        for title, records in shown.items():
            if records:
                say(f"\n{title.replace('_', ' ')}\n\n{table(records)}")
        asked = {key: value for key, value in vars(options).items() if key != "environments"}
        return report(
            "peers",
            METHOD,
            argparse.Namespace(**asked),
            model_file=f"{options.model}/model.onnx",
            cpus={"server": list(self.server_cpus), "load_generator": list(self.client_cpus)},
            network_of_its_own=bool(namespace_prefix()),
            versions={name: each.versions for name, each in self.environments.items()},
            wires=self.wires,
            batching={str(entry): str(choice) for entry, choice in self.batching.items()},
            tuned_requests_per_s=self.tuned,
            skipped=self.skipped,
            raw_rows_per_s={f"×{number}": spread(result) for number, result in raws.items()},
            targets=targets,
            **tables,
            ratios=ratios,
            statuses=statuses,
        )


def bodies(model: Path, number: int) -> dict[str, list[str]]:
    """Request bodies by payload, in base64: images of the model as PNG, and noise as float32."""
    function = common.Function(str(model))
    noise = np.random.default_rng(0).standard_normal((number, *function.shape), dtype=np.float32)
    pngs = [common.encoded(row) for row in function.rows(noise)]
    result = {PNG: pngs, RAW: [row.astype("<f4").tobytes() for row in noise]}
    return {payload: [base64.b64encode(body).decode() for body in each] for payload, each in result.items()}


def cpus(for_client: int | None) -> tuple[list[int], list[int]]:
    """The CPUs of the server and of the load generator; with fewer than four, both use all."""
    granted = sorted(os.sched_getaffinity(0))
    number = for_client if for_client is not None else (len(granted) // 4)
    if not 0 < number < len(granted):
        return granted, granted
    return granted[:-number], granted[-number:]


def rates(turn: Json) -> str:
    """The rates of a run in one line."""
    return ", ".join(
        f"{payload} at {connections} {load['ok_per_s']:.0f}/s"
        for payload, by in turn["loads"].items()
        for connections, load in by.items()
    )


def without_paths(text: str) -> str:
    """The text on one line, shortened in the middle, without directories of this machine."""
    line = _DIRECTORIES.sub("", " ".join(text.split()))
    return line if len(line) <= 600 else f"{line[:150]} … {line[-450:]}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def refuse(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2


def parser() -> argparse.ArgumentParser:
    cli = arguments("Measure this service beside other serving systems.")
    cli.add_argument(
        "--environments",
        default=str(environments.default_folder()),
        help="directory of the peers' environments, made if missing (default: %(default)s)",
    )
    names = [peer.name for peer in PEERS]
    cli.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"these peers: {', '.join(names)}")
    cli.add_argument("--processes", type=positive, nargs="+", help="copies of the model (1 2; quick: 1)")
    cli.add_argument("--connections", type=positive, nargs="+", help="loads (32 256; quick: 32)")
    cli.add_argument("--seconds", type=duration, help="of each load (6; quick: 1)")
    cli.add_argument("--warmup-s", type=duration, help="before each load (1; quick: 0.3)")
    cli.add_argument("--rounds", type=positive, help="(3; quick: 1)")
    cli.add_argument("--tune-s", type=float, help="of each load while batching is chosen; 0: no (2; quick: 0)")
    cli.add_argument("--bodies", type=positive, help="different bodies of each kind (32; quick: 8)")
    cli.add_argument("--client-cpus", type=int, help="CPUs for the load generator alone (a quarter; of 4 or more)")
    cli.add_argument("--start-s", type=duration, default=180.0, help="patience with a server's start (180)")
    cli.add_argument("--minutes", type=duration, default=150.0, help="no further round that would end later (150)")
    cli.add_argument("--models", default="models", help="directory of models")
    cli.add_argument("--model", default="mnist/3", help="name/version: 1×28×28, range [−1, 1]")
    return cli


if __name__ == "__main__":
    sys.exit(main())
