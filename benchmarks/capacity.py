"""Compute how many pods serve a number of images per second, and write measured tables into the
document.

    python -m benchmarks.capacity
    python -m benchmarks.capacity --images-per-s 5000 --steps 10 --p99-ms 50 --max-busy 0.5
    python -m benchmarks.capacity --write          # also docs/performance.md

A pod is one process on as many cores as the measured machine had. `results/service.json` says what
such a pod did, and a raw call of the model there what one more step costs. In the document, a table
stands between `<!-- results: NAME -->` and `<!-- end -->`, with a NAME of `TABLES`.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.harness.common import Json, duration, positive, rounded
from benchmarks.harness.processes import ROOT
from benchmarks.harness.tables import RESULTS, about, read, table

DOCUMENT: Final = ROOT / "docs" / "performance.md"
_MARKED: Final = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What one pod does with one kind of request."""

    request: str
    per_s: float  # the most images that were measured within the wanted p99
    p99_ms: float | None  # at that rate; None where it was not measured
    core_ms: float  # CPU time of an image, model included

    def with_steps(self, steps: int, model_core_ms: float) -> "Capacity":
        """The same with more steps per image: every step after the first costs ``model_core_ms`` of
        CPU time.
        """
        if steps == 1:
            return self
        core_ms = self.core_ms + (steps - 1) * model_core_ms
        return replace(
            self, per_s=self.per_s * self.core_ms / core_ms, p99_ms=None, core_ms=core_ms
        )

    def pods(self, images_per_s: float, max_busy: float) -> int:
        """The fewest pods that stay below ``max_busy`` (0…1), and carry the whole load when one of
        them is gone.
        """
        return max(
            math.ceil(images_per_s / (self.per_s * max_busy)),
            math.ceil(images_per_s / self.per_s) + 1,
        )


def capacities(service: Json, p99_ms: float) -> list[Capacity]:
    """Every kind of request that was answered with a p99 of at most ``p99_ms``, at the highest rate
    that was.
    """
    lines = [
        {"form": "1 image: PNG to PNG", "rate": line["requests_per_s"]} | line
        for line in service["single_images"]
    ]
    lines += [
        line | {"form": f"64 images: {line['form']}", "rate": line["images_per_s"]}
        for line in service["many_rows"]
    ]
    best: dict[str, Capacity] = {}
    for line in sorted(lines, key=lambda line: float(line["rate"])):
        if line["p99_ms"] <= p99_ms:
            figures = {
                "per_s": line["rate"],
                "p99_ms": line["p99_ms"],
                "core_ms": line["server_core_ms"],
            }
            best[line["form"]] = Capacity(request=line["form"], **figures)
    if not best:
        raise ValueError(f"nothing was measured with a p99 of at most {p99_ms:g} ms")
    return [best[form] for form in dict.fromkeys(line["form"] for line in lines) if form in best]


def plan(service: Json, options: argparse.Namespace) -> list[Json]:
    """One record for every demand and kind of request."""
    step_ms = service["many_rows"][0]["raw_core_ms"]  # CPU time of a row in onnxruntime alone
    lines = []
    for images_per_s in options.images_per_s:
        for measured in capacities(service, options.p99_ms):
            capacity = measured.with_steps(options.steps, step_ms)
            pods = capacity.pods(images_per_s, options.max_busy)
            line = {
                "images per s": images_per_s,
                "request": capacity.request,
                "one pod does": rounded(capacity.per_s),
            }
            line |= {
                "p99 ms then": capacity.p99_ms,
                "pods": pods,
                "cores": pods * service["machine"]["cpus_granted"],
            }
            lines.append(line | {"busy": f"{images_per_s / (pods * capacity.per_s):.0%}"})
    return lines


def chosen(lines: Sequence[Json], names: str) -> str:
    return table([{name.replace("_", " "): line[name] for name in names.split()} for line in lines])


TABLES: Final[Mapping[str, Callable[[Path, argparse.Namespace], str]]] = {
    "capacity": lambda folder, options: table(plan(read(folder / "service.json"), options)),
    "single": lambda folder, _: chosen(
        [
            row
            for row in read(folder / "service.json")["single_images"]
            if row["connections"] in {1, 32, 128}
        ],
        "connections requests_per_s p50_ms p99_ms server_core_ms",
    ),
    "many": lambda folder, _: chosen(
        read(folder / "service.json")["many_rows"],
        "form images_per_s share_of_raw p99_ms server_core_ms",
    ),
    "peers": lambda folder, _: chosen(
        read(folder / "peers.json")["png_at_32_connections"],
        "entry requests_per_s p99_ms server_core_ms",
    ),
}


def filled(text: str, options: argparse.Namespace) -> str:
    """A document with its tables made anew."""
    return _MARKED.sub(
        lambda found: f"{found[1]}\n{TABLES[found[2]](options.results, options)}\n\n{found[3]}",
        text,
    )


def main() -> int:
    cli = argparse.ArgumentParser(
        description="Compute how many pods serve a number of images per second."
    )
    cli.add_argument(
        "--images-per-s",
        type=positive,
        nargs="+",
        default=(1_000, 100_000),
        help="the load (%(default)s)",
    )
    cli.add_argument("--steps", type=positive, default=1, help="steps per image (%(default)s)")
    cli.add_argument(
        "--p99-ms", type=duration, default=200.0, help="the highest p99 to accept (%(default)s)"
    )
    cli.add_argument(
        "--max-busy",
        type=duration,
        default=0.7,
        help="share of its capacity that a pod gets (%(default)s)",
    )
    cli.add_argument("--results", type=Path, default=RESULTS, help="folder of the measured results")
    cli.add_argument("--write", action="store_true", help="write the tables into the document")
    options = cli.parse_args()
    try:
        print(about(read(options.results / "service.json")), end="\n\n")
        print(TABLES["capacity"](options.results, options))
        if options.write:
            DOCUMENT.write_text(
                filled(DOCUMENT.read_text(encoding="utf-8"), options), encoding="utf-8"
            )
    except (KeyError, OSError, ValueError) as exc:
        print(f"error: {exc!r}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
