"""Shared by all benchmarks: machine description, percentiles, rounds, targets, options and result files."""

import argparse
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness.processes import ServerFailed
from service.domain.errors import StartupError
from service.environment import available_cpus

T = TypeVar("T")
Json = dict[str, Any]

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "fastapi", "uvicorn", "uvloop", "httptools", "pillow")

_OMITTED = ("machine", "results", "models", "model", "setting")  # options: paths, and values stated elsewhere


def machine() -> Json:
    """The machine and the package versions of a result, without host names and paths."""
    return {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "cpus_granted": available_cpus(),
        "memory_mib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20),
        "load_1m": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: result for name in PACKAGES if (result := _version(name)) is not None},
    }


def processor() -> str:
    """The CPU's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that at least ``percent`` % of the values do not exceed.

    Args:
        ordered: values in ascending order.
        percent: 0…100.

    Raises:
        ValueError: there are no values.
    """
    if not ordered:
        raise ValueError("a percentile needs at least one value")
    rank = math.ceil(round(percent / 100 * len(ordered), 9))
    return ordered[max(rank, 1) - 1]


def latency(seconds: Sequence[float]) -> Json:
    """Count, and in milliseconds: mean, p50, p95, p99, p99.9 and maximum."""
    if not seconds:
        return {"count": 0}
    ordered = sorted(seconds)
    result: Json = {"count": len(ordered), "mean_ms": statistics.fmean(ordered) * 1e3}
    for name, percent in (("p50_ms", 50.0), ("p95_ms", 95.0), ("p99_ms", 99.0), ("p999_ms", 99.9), ("max_ms", 100.0)):
        result[name] = percentile(ordered, percent) * 1e3
    return {name: rounded(value) for name, value in result.items()}


def rounded(value: Any) -> Any:
    """A float rounded to four significant digits, but not beyond whole numbers; other values unchanged."""
    if not isinstance(value, float) or not math.isfinite(value) or value == 0:
        return value
    return round(value, max(0, 3 - math.floor(math.log10(abs(value)))))


def in_turn(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Measure each way once per round, in reverse order every second round: a slower machine then slows all of them."""
    result: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)
        for name in names if number % 2 == 0 else reversed(names):
            result[name].append(ways[name]())
    return result


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios of each round; effects that both share in a round cancel out."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def spread(values: Sequence[float]) -> Json:
    """Median, least and most of the values of all rounds."""
    return {
        "median": rounded(statistics.median(values)),
        "least": rounded(min(values)),
        "most": rounded(max(values)),
    }


def slope_per_minute(samples: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of (seconds, value), in value per minute; 0 with fewer than two times."""
    if len({seconds for seconds, _ in samples}) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*samples, strict=True)).slope * 60


def memory(samples: Sequence[tuple[float, float]], *, warmup: float = 1 / 3, share: float = 0.05) -> Json:
    """Statistics of resident memory, and whether it was flat.

    Args:
        samples: (seconds, MiB) in ascending time.
        warmup: the share of the time at the beginning that is ignored.
        share: flat means that the fitted line grows by at most this share of the median, or by 8 MiB.
    """
    left_out = samples[0][0] + (samples[-1][0] - samples[0][0]) * warmup
    kept = [sample for sample in samples if sample[0] >= left_out]
    slope, span = slope_per_minute(kept), (kept[-1][0] - kept[0][0]) / 60
    middle = statistics.median(value for _, value in kept)
    growth = slope * span
    return {
        "first_mib": rounded(samples[0][1]),
        "median_mib": rounded(middle),
        "last_mib": rounded(samples[-1][1]),
        "most_mib": rounded(max(value for _, value in samples)),
        "slope_mib_per_minute": rounded(slope),
        "growth_mib": rounded(growth),
        "allowed_growth_mib": rounded(max(8.0, share * middle)),
        "seconds_judged": rounded(span * 60),
        "flat": growth <= max(8.0, share * middle),
    }


def target(
    what: str, measured: float | None, *, at_least: float | None = None, at_most: float | None = None, unit: str = ""
) -> Json:
    """A target and whether it is met; needs exactly one bound. A target without a measured value is not met."""
    if (at_least is None) == (at_most is None):
        raise ValueError("give at_least or at_most")
    bound, sign = (at_least, "≥") if at_least is not None else (at_most, "≤")
    assert bound is not None
    met = measured is not None and (measured >= bound if sign == "≥" else measured <= bound)
    return {"what": what, "sign": sign, "bound": bound, "unit": unit, "measured": rounded(measured), "met": met}


def report(benchmark: str, method: str, options: argparse.Namespace, **results: Any) -> Json:
    """A result as it is saved: benchmark, method, options and machine, then ``results``."""
    asked = {name: value for name, value in vars(options).items() if name not in _OMITTED}
    return {"benchmark": benchmark, "method": method, "options": asked, "machine": options.machine, **results}


def write(result: Json, results: str | None) -> None:
    """Print a result, and save it in the file ``results`` if given."""
    print(json.dumps(result, indent=2, ensure_ascii=False))
    if results:
        save(result, results)


def save(result: Json, results: str) -> None:
    """Write a result to the file ``results``."""
    path = Path(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def run_benchmark(
    measure: Callable[[argparse.Namespace], Json], options: argparse.Namespace, *, judge: bool = False
) -> int:
    """Measure, print the result and save it.

    Args:
        measure: options → result.
        options: of the command line.
        judge: a missed target is a failure.

    Returns:
        The exit status: 1 for a missed target that is judged, 2 if nothing could be measured.
    """
    try:
        result = measure(options)
    except (ServerFailed, StartupError, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    write(result, options.results)
    return int(judge and not all(line["met"] for line in result["targets"]))


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    cli = argparse.ArgumentParser(description=description)
    cli.add_argument("--quick", action="store_true", help="run a few seconds, to check that it works")
    cli.add_argument("--results", help="also write the JSON to this file, such as benchmarks/results/NAME.json")
    return cli


def apply_defaults(
    options: argparse.Namespace, *, full: Mapping[str, Any], quick: Mapping[str, Any]
) -> argparse.Namespace:
    """Set missing options to their value for a full or a quick run, and record the machine and its load."""
    options.machine = machine()  # before the benchmark adds its own load
    for name, value in (quick if options.quick else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def positive(text: str) -> int:
    """Parse an option: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def duration(text: str) -> float:
    """Parse an option: a time above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def setting(text: str) -> tuple[str, str]:
    """Parse an option: one setting of the service, `IGN_NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not (name.startswith("IGN_") and equals):
        raise argparse.ArgumentTypeError("must be IGN_NAME=VALUE")
    return name, value
