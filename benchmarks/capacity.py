"""Compute how many pods serve a number of images per second, from the measured results of this directory.

    python -m benchmarks.capacity
    python -m benchmarks.capacity --images-per-s 5000 --steps 10 --p99-ms 50 --max-busy 0.5

A pod is one process on as many cores as the measured machine had. `results/service.json` says what such a pod did,
and `results/runtime.json` what one more step costs.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.harness.common import Json, duration, positive, rounded
from benchmarks.harness.tables import RESULTS, about, read, table

DEMANDS: Final = (10, 1_000, 100_000)


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What one pod does with one kind of request.

    Args:
        request: the kind.
        per_s: the most images per second that were measured within the wanted p99.
        p99_ms: latency of a request at that rate; None where it was not measured.
        core_ms: CPU time of an image, model included.
    """

    request: str
    per_s: float
    p99_ms: float | None
    core_ms: float

    def with_steps(self, steps: int, model_core_ms: float) -> "Capacity":
        """The same with more steps per image: every step after the first costs ``model_core_ms`` of CPU time."""
        if steps == 1:
            return self
        core_ms = self.core_ms + (steps - 1) * model_core_ms
        return Capacity(request=self.request, per_s=self.per_s * self.core_ms / core_ms, p99_ms=None, core_ms=core_ms)

    def pods(self, images_per_s: float, max_busy: float) -> int:
        """The fewest pods that stay below ``max_busy`` (0…1), and carry the whole load when one of them is gone."""
        return max(math.ceil(images_per_s / (self.per_s * max_busy)), math.ceil(images_per_s / self.per_s) + 1)


def capacities(service: Json, p99_ms: float) -> list[Capacity]:
    """Every kind of request that was answered with a p99 of at most ``p99_ms``, at the highest rate that was.

    Raises:
        ValueError: no measurement meets ``p99_ms``.
    """
    kinds: dict[str, list[Json]] = {}
    for line in service["single_pictures"]:
        kinds.setdefault("1 image: PNG to PNG", []).append({"rate": line["requests_per_s"]} | line)
    for line in service["many_rows"]:
        kinds.setdefault(f"64 images: {line['form']}", []).append({"rate": line["pictures_per_s"]} | line)
    result = [best for request, lines in kinds.items() if (best := _fastest(request, lines, p99_ms)) is not None]
    if not result:
        raise ValueError(f"nothing was measured with a p99 of at most {p99_ms:g} ms")
    return result


def _fastest(request: str, lines: list[Json], p99_ms: float) -> Capacity | None:
    best = max((line for line in lines if line["p99_ms"] <= p99_ms), key=lambda line: float(line["rate"]), default=None)
    if best is None:
        return None
    return Capacity(request=request, per_s=best["rate"], p99_ms=best["p99_ms"], core_ms=best["server_core_ms"])


def model_core_ms(runtime: Json) -> float:
    """CPU time of one row in the largest measured batch, in ms."""
    largest = max(runtime["sizes"], key=lambda line: int(line["rows"]))
    return float(largest["onnxruntime"]["cpu_ms_per_row"])


def plan(service: Json, runtime: Json, options: argparse.Namespace) -> list[Json]:
    """One record for every demand and kind of request."""
    cores, step_ms = service["machine"]["cpus_granted"], model_core_ms(runtime)
    lines = []
    for images_per_s in options.images_per_s:
        for measured in capacities(service, options.p99_ms):
            capacity = measured.with_steps(options.steps, step_ms)
            pods = capacity.pods(images_per_s, options.max_busy)
            lines.append(
                {
                    "images per s": images_per_s,
                    "request": capacity.request,
                    "one pod does": rounded(capacity.per_s),
                    "p99 ms then": capacity.p99_ms,
                    "pods": pods,
                    "cores": pods * cores,
                    "busy": f"{images_per_s / (pods * capacity.per_s):.0%}",
                }
            )
    return lines


def main() -> int:
    options = parser().parse_args()
    try:
        service, runtime = read(options.results / "service.json"), read(options.results / "runtime.json")
        print(f"{about(service)}\n\n{table(plan(service, runtime, options))}")
    except KeyError as exc:
        print(f"error: a result lacks {exc}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


def share(text: str) -> float:
    """Parse an option: a number above 0 and at most 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return number


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(description="Compute how many pods serve a number of images per second.")
    cli.add_argument("--images-per-s", type=positive, nargs="+", default=DEMANDS, help="the load (%(default)s)")
    cli.add_argument("--steps", type=positive, default=1, help="steps per image (%(default)s)")
    cli.add_argument("--p99-ms", type=duration, default=200.0, help="the highest p99 to accept (%(default)s)")
    cli.add_argument("--max-busy", type=share, default=0.7, help="share of its capacity that a pod gets (%(default)s)")
    cli.add_argument("--results", type=Path, default=RESULTS, help="folder of the measured results")
    return cli


if __name__ == "__main__":
    sys.exit(main())
