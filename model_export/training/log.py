"""The log of a run: JSON lines."""

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from model_export.files import atomic_write
from model_export.training.presets import Preset

COMPUTE: Final = "compute"  # forward, backward and optimiser
TERMS: Final[Mapping[str, str]] = {
    "rec": "reconstruction: how much f changes real pictures",
    "imle": "distance of every picture to its nearest sample",
    "match": "distance of samples to the pictures they are paired with",
    "distill": "distance of f(z) to several steps of the earlier stage",
    "project": "restoration: distance of f(corrupted picture) to the picture",
    "idem": "idempotence: distance of f(f(z)) to f(z), trains the inner f",
    "tight": "tightness, negative: few other pictures stay as they are",
    "settle": "idempotence: how much f changes its own samples",
    "critic": "minus the discriminator's score of samples",
    "drifting": "drifting: distance of samples to where the pictures draw them",
    "features": "restoration: the same distances in perceptual features",
    "project_any": "drifting, of drawings after f and after f twice",
    "gate": "how well noise is told from pictures and drawings",
    "code_drifting": "drifting, of codes",
    "code_critic": "minus the critic's score of codes",
    "frechet": "Fréchet distance of samples in perceptual features",
    "fitting": "distance of the codes of pens to those of the nearest picture that fits",
    "second": "distance of f(z) to f(f(z)), trains f(z)",
    "marks": "what f(corrupted picture) lacks of each part of its ink, beyond a quarter",
    "again": "idempotence: distance of f(f(corrupted picture)) to f of it, or to the picture",
    "health": "idem / rec; above 1 the samples collapse",
}
"""Every name that `log.jsonl` and the progress bar show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """The throughput of an interval of training."""

    steps: int = 0  # optimiser steps
    pictures: int = 0  # training pictures used
    seconds: float = 0.0  # wall-clock time
    # Seconds by phase; `compute` is forward, backward and optimiser. Their sum may be less than
    # `seconds`.
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def pictures_per_second(self) -> float:
        """0 for an empty interval."""
        return self.pictures / self.seconds if self.seconds else 0.0

    @property
    def outside(self) -> float:
        """Share of the time outside forward, backward and optimiser, 0 to 1."""
        return max(0.0, 1.0 - self.phases.get(COMPUTE, 0.0) / self.seconds) if self.seconds else 0.0

    def __add__(self, other: "Throughput") -> "Throughput":
        return Throughput(
            steps=self.steps + other.steps,
            pictures=self.pictures + other.pictures,
            seconds=self.seconds + other.seconds,
            phases=Counter(self.phases) + Counter(other.phases),
        )

    def __str__(self) -> str:
        shares = sorted(
            ((s / self.seconds, name) for name, s in self.phases.items() if name != COMPUTE),
            reverse=True,
        )
        parts = ", ".join(f"{name} {share:.1%}" for share, name in shares)
        return (
            f"{self.steps} steps, {self.pictures_per_second:.0f} pictures/s, "
            f"{self.outside:.1%} of the time outside forward, backward and optimiser ({parts})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The form of the log: rates, and shares of the time by phase."""
        return {
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "pictures_per_second": round(self.pictures_per_second, 1),
            "outside": round(self.outside, 4),
            "phases": {
                name: round(seconds / self.seconds, 4) for name, seconds in self.phases.items()
            },
        }


class ThroughputMeter:
    """Measures the duration of phases that follow one another.

    On CUDA the host runs ahead of the device, so it waits for the device where a phase begins and
    ends.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.start()

    def start(self) -> None:
        """Start a new interval."""
        self._steps = 0
        self._pictures = 0
        self._phases: defaultdict[str, float] = defaultdict(float)
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block for this phase. Phases must not be nested."""
        started = self._now()
        yield
        self._phases[name] += self._now() - started

    def step(self, pictures: int) -> None:
        """Count one optimiser step."""
        self._steps += 1
        self._pictures += pictures

    def interval(self) -> Throughput:
        """End the present interval, return its throughput, and start the next one."""
        seconds = self._now() - self._started
        ended = Throughput(
            steps=self._steps, pictures=self._pictures, seconds=seconds, phases=dict(self._phases)
        )
        self.start()
        return ended

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Log:
    """Appends lines to ``path`` and deletes those after the checkpoint from which the run
    continues.

    A line has `step`, `stage`, and either the terms of the loss at that step or `throughput` of the
    interval that ends there.
    """

    def __init__(self, path: Path, step: int) -> None:
        lines = path.read_text().splitlines() if path.is_file() else []
        with atomic_write(path) as file:
            file.write("".join(f"{line}\n" for line in lines if _step_of(line) <= step).encode())
        self._path = path

    def __enter__(self) -> "Log":
        self._file = self._path.open("a")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def terms(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Log the terms of the loss at a step."""
        self._write({"step": step, "stage": stage, **values})

    def throughput(self, step: int, stage: str, measured: Throughput) -> None:
        """Log the throughput of the interval that ends at this step."""
        self._write({"step": step, "stage": stage, "throughput": measured.to_dict()})

    def _write(self, line: Mapping[str, object]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _step_of(line: str) -> float:
    """The step of a line. A line that a crash has cut has none; infinity makes the caller delete
    it.
    """
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def legend(preset: Preset) -> list[str]:
    """One line for each term that a stage of the preset uses. Lower values are better."""
    used = {
        name
        for stage in preset.stages
        for name, weight in asdict(stage.weights).items()
        if weight > 0
    }
    if "idem" in used:
        used.add("health")
    width = max(map(len, used))
    return [f"  {name:{width}}  {words}" for name, words in TERMS.items() if name in used]
