"""The log of a run: JSON lines."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from model_export.files import atomic_write
from model_export.training.presets import Preset

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


class Log:
    """Appends lines to ``path`` and deletes those after the checkpoint from which the run
    continues.

    A line has `step`, `stage`, and either the terms of the loss at that step or, where a stage or
    the run ends, its `pictures_per_second`.
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

    def write(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Log the terms of the loss at a step, or the speed."""
        self._file.write(json.dumps({"step": step, "stage": stage, **values}) + "\n")
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
