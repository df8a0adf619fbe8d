"""What all benchmarks share: options, machine, rounds, statistics, targets and result files."""

import argparse
import json
import math
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from benchmarks.harness.processes import ROOT, ServerFailed
from service.domain.errors import StartupError
from service.environment import available_cpus

T = TypeVar("T")
Json = dict[str, Any]

PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "fastapi",
    "uvicorn",
    "uvloop",
    "httptools",
    "pillow",
)
_OMITTED = ("results", "model", "environment", "sets")  # paths, and what a result states elsewhere


def newest(name: str) -> Path:
    """The folder of the newest version of a shipped model."""
    versions = (ROOT / "models" / name).glob("[0-9]*")
    return max(versions, key=lambda folder: int(folder.name), default=ROOT)


MODEL: Final = newest("mnist") / "model.onnx"
REF: Final = f"mnist/{MODEL.parent.name}"

# Option of a benchmark → its default. A list takes several values, False is a switch.
Options = Mapping[str, Any]


def run_benchmark(
    name: str,
    method: str,
    measure: Callable[[argparse.Namespace], Json],
    options: Options,
    *,
    judge: bool = False,
) -> int:
    """Measure, print the result as JSON, and save it where `--results` says.

    ``measure`` returns tables, and under `targets` the targets. The exit status is 1 for a missed
    target if ``judge``, and 2 if nothing could be measured.
    """
    asked = parse_options(method, options)
    before = machine()  # before the benchmark adds its own load
    try:
        measured = measure(asked)
    except (ServerFailed, StartupError, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    stated = {key: value for key, value in vars(asked).items() if key not in _OMITTED}
    result = {"benchmark": name, "method": method, "options": stated, "machine": before, **measured}
    text = json.dumps(rounded(result), indent=2, ensure_ascii=False)
    print(text)
    if asked.results:
        Path(asked.results).parent.mkdir(parents=True, exist_ok=True)
        Path(asked.results).write_text(text + "\n", encoding="utf-8")
    return int(judge and not all(line["met"] for line in result["targets"]))


def parse_options(method: str, options: Options) -> argparse.Namespace:
    """The command line of a benchmark."""
    cli = argparse.ArgumentParser(description=method.replace("%", "%%"), allow_abbrev=False)
    cli.add_argument(
        "--results", help="also write the JSON to this file, such as benchmarks/results/NAME.json"
    )
    for name, default in options.items():
        flag = f"--{name.replace('_', '-')}"
        if default is False:
            cli.add_argument(flag, action="store_true")
            continue
        several = isinstance(default, list)
        cli.add_argument(
            flag,
            type=type(default[0] if several else default),
            nargs="+" if several else None,
            default=default,
            help="(default %(default)s)",
        )
    return cli.parse_args()


def machine() -> Json:
    """The machine and the package versions of a result, without host names and paths."""
    name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    installed = {each.name.lower(): each.version for each in distributions()}
    return {
        "processor": name[1] if name else platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_granted": available_cpus(),
        "memory_mib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20),
        "load_1m": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: installed[name] for name in PACKAGES if name in installed},
    }


def target(
    what: str,
    measured: float | None,
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    unit: str = "",
) -> Json:
    """A target with one bound, and whether it is met; without a measured value it is not."""
    sign, bound = ("≤", at_most) if at_least == -math.inf else ("≥", at_least)
    return {
        "what": what,
        "sign": sign,
        "bound": bound,
        "unit": unit,
        "measured": measured,
        "met": measured is not None and at_least <= measured <= at_most,
    }


def rounded(value: Any) -> Any:
    """The value with all floats in it rounded to six significant digits."""
    return json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.6g}"))


PERCENTILES: Final = {"p50_ms": 50, "p99_ms": 99, "p999_ms": 99.9, "max_ms": 100}


def latency(seconds: Sequence[float]) -> Json:
    """Count, and nearest-rank percentiles in milliseconds: p50, p99, p99.9 and maximum."""
    if not seconds:
        return {"count": 0}
    values = np.percentile(seconds, list(PERCENTILES.values()), method="inverted_cdf") * 1e3
    return {"count": len(seconds), **dict(zip(PERCENTILES, values.tolist(), strict=True))}


def in_turn(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Measure each way once per round, in reverse order every second round: a slower machine then
    slows all of them.
    """
    result: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            result[name].append(ways[name]())
    return result


def flattened(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested records by their dotted names."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{before}{name}.")
        else:
            yield before + name, value


def each_round(rounds: Iterable[Json], name: str) -> list[float]:
    """One figure of every round, by its dotted name, such as `ok.p50_ms`; 0 where a round has
    none.
    """
    return [dict(flattened(each)).get(name, 0.0) for each in rounds]


def median_of(rounds: Iterable[Json], name: str) -> Any:
    """The median of one figure over all rounds."""
    return statistics.median(each_round(rounds, name))


def median_ratio(over: Sequence[float], under: Sequence[float]) -> Any:
    """Median of the ratios of each round; effects that both share in a round cancel
    out.
    """
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def memory(samples: Sequence[tuple[float, float]]) -> Json:
    """Resident memory, and the growth of a line fitted through it in the last two thirds of the
    time.

    ``samples`` are (seconds, MiB). A growth of 8 MiB, or of 5 % of the median, is allowed.
    """
    seconds, mib = np.array(samples).T
    is_kept = seconds >= seconds[0] + (seconds[-1] - seconds[0]) / 3
    duration = np.ptp(seconds[is_kept])
    slope = np.polyfit(seconds[is_kept], mib[is_kept], 1)[0]
    middle = np.median(mib[is_kept])
    return {
        "median_mib": middle,
        "most_mib": mib.max(),
        "growth_mib": slope * duration,
        "allowed_growth_mib": max(8.0, 0.05 * middle),
        "seconds_judged": duration,
    }
