"""Estimate how long a training takes on this machine."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import torch

from model_export.data.datasets import Dataset
from model_export.training.presets import Preset
from model_export.training.train import Run

# steps of each stage: the first also allocates memory and makes drawings, the others are timed
STEPS: Final = 3


def estimate_seconds(preset: Preset, data: Dataset, *, device: torch.device, bf16: bool) -> float:
    """Train a few steps of every stage with a copy of the network, and extrapolate.

    The time of pool and pairs is divided by their refresh intervals. Checkpoints are not counted.
    """
    stages = tuple(dataclasses.replace(stage, steps=STEPS, warmup=1) for stage in preset.stages)
    short = dataclasses.replace(preset, stages=stages)
    matching = preset.matching
    seconds = 0.0

    def timed(action: Callable[[], object]) -> float:
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory() as folder:
        run = Run(short, data, Path(folder), seed=0, device=device, bf16=bf16, provenance={})
        for stage in preset.stages:
            run.step_once()
            # Batches for which both, pairs alone, and neither are made anew.
            both, pairs, neither = (
                timed(partial(run.batches.build, run.step, at, stage, run.forward))
                for at in (0, matching.pairs_refresh, 1)
            )
            step = min(timed(run.step_once) for _ in range(STEPS - 1))
            step += max(0.0, both - pairs) / matching.pool_refresh
            step += max(0.0, pairs - neither) / matching.pairs_refresh
            seconds += stage.steps * step
    return seconds


def in_words(seconds: float) -> str:
    """A duration with the precision of an estimate: `50 s`, `40 min` or `2.5 h`."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
