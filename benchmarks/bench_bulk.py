"""The speed of `python -m service.bulk` on many images, beside raw onnxruntime.

    python -m benchmarks.bench_bulk --results benchmarks/results/bulk.json

Runs the whole command, with start and verification of the model: generate into a folder, then project and score the
generated images from the folder and from a zip file of it.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness.common import Json, apply_defaults, arguments, in_turn, positive, report, rounded, write
from benchmarks.harness.instrumented_model import BATCH_ROWS, InstrumentedModel, instrumented_model
from benchmarks.harness.processes import ROOT
from service.domain.errors import StartupError

METHOD = (
    "Each run is the whole command in a process of its own, with its input on the local disk and in the page cache, "
    "and its output in a new folder; median of `rounds` rounds, all ways in turn. `start_s`: the same command "
    "again, which finds everything done: start, verification of the model, check of the shards, manifest. raw: "
    "repeated calls of onnxruntime with 64 prepared rows in the process of the benchmark, as often as the command "
    "applies f; `of_raw` is that time over the time of the command, with and without its start (null where the "
    "start is most of it); core_ms_per_picture is the CPU time of the command"
)
FULL = {"pictures": 10_000, "rounds": 3}
QUICK = {"pictures": 300, "rounds": 1}
STEPS = {"generate": 1, "project folder": 1, "project zip": 1, "score folder": 2}
"""The runs, and how often each applies f to an image."""

Timed = tuple[float, float, float]
"""Seconds of the command, its CPU seconds, and seconds of the same command when everything is done already."""


def main() -> int:
    options = apply_defaults(parser().parse_args(), full=FULL, quick=QUICK)
    try:
        write(measure(options), options.results)
    except StartupError as exc:
        print(f"error: {exc.detail}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as exc:
        print(f"error: {' '.join(exc.cmd[2:])}: {exc.stderr[-2000:]}", file=sys.stderr)
        return 1
    return 0


def measure(options: argparse.Namespace) -> Json:
    with tempfile.TemporaryDirectory() as name, instrumented_model(Path(options.models), options.model) as measured:
        dataset = TempDataset(Path(name), options)
        dataset.create()
        ways: dict[str, Callable[[], Timed]] = {
            "raw": lambda: (raw_seconds(measured, options.pictures), 0.0, 0.0),
            "generate": partial(dataset.timed, "generate", "-n", str(options.pictures), "--seed", "7"),
            "project folder": partial(dataset.timed, "project", str(dataset.folder)),
            "project zip": partial(dataset.timed, "project", str(dataset.archive)),
            "score folder": partial(dataset.timed, "score", str(dataset.folder)),
        }
        rounds = in_turn(ways, options.rounds)
        about = {
            "ref": measured.loaded.ref,
            "digest": measured.loaded.digest[:12],
            "provider": measured.loaded.provider,
        }
    raw = [seconds for seconds, _, _ in rounds.pop("raw")]
    return report(
        "bulk",
        METHOD,
        options,
        model=about,
        targets=[],
        raw=[{"rows_per_call": BATCH_ROWS, "pictures_per_s": rounded(options.pictures / statistics.median(raw))}],
        runs=[line(way, measured, raw, options.pictures) for way, measured in rounds.items()],
    )


def line(way: str, rounds: list[Timed], raw: list[float], pictures: int) -> Json:
    """The record of one run."""
    seconds, cpu, start = (statistics.median(values) for values in zip(*rounds, strict=True))
    shares = [STEPS[way] * one / taken for one, (taken, _, _) in zip(raw, rounds, strict=True)]
    bare = [
        STEPS[way] * one / (taken - idle) for one, (taken, _, idle) in zip(raw, rounds, strict=True) if taken > idle
    ]
    lasting = seconds > 2 * start  # else the difference is mostly noise
    measured = {
        "run": way,
        "pictures": pictures,
        "f_applied": STEPS[way],
        "seconds": seconds,
        "start_s": start,
        "pictures_per_s": pictures / seconds,
        "pictures_per_s_without_start": pictures / (seconds - start) if lasting else None,
        "of_raw": statistics.median(shares),
        "of_raw_without_start": statistics.median(bare) if lasting else None,
        "core_ms_per_picture": cpu / pictures * 1e3,
    }
    return {name: rounded(value) for name, value in measured.items()}


def raw_seconds(measured: InstrumentedModel, pictures: int) -> float:
    rows = measured.rows(BATCH_ROWS)
    last = np.ascontiguousarray(rows[: pictures % BATCH_ROWS])
    measured.raw(rows)
    began = time.perf_counter()
    for _ in range(pictures // BATCH_ROWS):
        measured.raw(rows)
    if len(last):
        measured.raw(last)
    return time.perf_counter() - began


class TempDataset:
    """A temporary folder with generated images, and the commands that use it."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        self._path, self._options, self._count = path, options, 0
        self.folder, self.archive = path / "pictures", path / "pictures.zip"

    def create(self) -> None:
        """Generate the images, and make a zip file of them."""
        self._run("generate", "-n", str(self._options.pictures), "--seed", "1", output=self.folder)
        with zipfile.ZipFile(self.archive, "w") as archive:  # PNGs are compressed already
            for file in sorted(self.folder.rglob("*.png")):
                archive.write(file, file.relative_to(self.folder).as_posix())

    def timed(self, *command: str) -> Timed:
        """Run a command into a new folder, then again into the same folder."""
        self._count += 1
        output = self._path / f"out-{self._count}"
        before = cpu_seconds()
        seconds = self._run(*command, output=output)
        cpu = cpu_seconds() - before
        return seconds, cpu, self._run(*command, output=output)

    def _run(self, task: str, *rest: str, output: Path) -> float:
        theirs = {name: value for name, value in os.environ.items() if not name.startswith("IGN_")}
        models = str(Path(self._options.models).resolve())
        given = list(rest) if task == "generate" else [rest[0]]
        place = [str(output), *given] if task == "generate" else [*given, str(output)]
        steps = [] if task == "score" else ["--steps", "1"]
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "service.bulk", task, *place, *steps, "--model", self._options.model],
            cwd=ROOT,
            env=theirs | {"IGN_MODEL_DIR": models, "IGN_DEFAULT_MODEL": self._options.model},
            capture_output=True,
            text=True,
            check=True,
        )
        return time.perf_counter() - began


def cpu_seconds() -> float:
    """CPU time of all finished commands."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def parser() -> argparse.ArgumentParser:
    cli = arguments("Measure service.bulk against raw onnxruntime.")
    cli.add_argument("--models", default=str(ROOT / "models"), help="model directory (default: the shipped one)")
    cli.add_argument("--model", default="mnist", help="name or name/version (default mnist)")
    cli.add_argument("--pictures", type=positive, help="pictures (default 10000; quick 300)")
    cli.add_argument("--rounds", type=positive, help="rounds (default 3; quick 1)")
    return cli


if __name__ == "__main__":
    sys.exit(main())
