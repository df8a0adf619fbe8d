"""Estimate how long a training takes on this machine."""

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Final

import torch

from model_export.data.datasets import Dataset
from model_export.training.presets import Preset
from model_export.training.train import Run

# timed steps of each stage; the first also allocates memory, the last begins the next stage
STEPS: Final = 3


def estimate_seconds(preset: Preset, data: Dataset, *, device: torch.device, bf16: bool) -> float:
    """Train a few steps of every stage with a copy of the network, and extrapolate.

    The time of pool and pairs is divided by their refresh intervals. Checkpoints are not counted.
    """
    stages = tuple(dataclasses.replace(stage, steps=STEPS, warmup=1) for stage in preset.stages)
    short = dataclasses.replace(preset, stages=stages)
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        run = Run(short, data, Path(folder), seed=0, device=device, bf16=bf16, provenance={})
        for stage in preset.stages:
            times = []
            refreshes = {}
            for step in range(STEPS):
                run.meter.start()
                run.step_once()
                measured = run.meter.interval()
                if step == 0:
                    refreshes = {name: measured.phases.get(name, 0.0) for name in ("pool", "pairs")}
                else:
                    times.append(measured.seconds)
            matching = preset.matching
            refresh = (
                refreshes["pool"] / matching.pool_refresh
                + refreshes["pairs"] / matching.pairs_refresh
            )
            seconds += stage.steps * (min(times) + refresh)
    return seconds


def other_load() -> str:
    """A remark for the estimate if other programs keep the machine busy, which makes it too long;
    else empty.
    """
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    return f", while {load:.0f} threads share {cores} cores" if load > cores else ""


def in_words(seconds: float) -> str:
    """A duration with the precision of an estimate: `50 s`, `40 min` or `2.5 h`."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
