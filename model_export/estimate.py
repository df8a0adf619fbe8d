"""Estimate how long a training takes."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from model_export.data.datasets import Dataset
from model_export.training.batches import RngStream
from model_export.training.presets import Preset
from model_export.training.train import Run

_PICTURES: Final = 256  # of the data, as many as one step of any preset needs
_FEW: Final = 4  # rows of most steps
_MORE: Final = 12  # rows of the others: a part of the time does not grow with the rows


def estimate_seconds(preset: Preset, data: Dataset, *, device: torch.device, bf16: bool) -> float:
    """Seconds of one core, whatever else the machine does, or seconds of the GPU.

    Two steps of every stage are timed, with few rows, and extrapolated. Drawings, blocks, the
    perceptual network and checkpoints are not counted.
    """
    matching = preset.matching
    short = replace(
        preset,
        stages=tuple(replace(stage, steps=4, warmup=1, fit_blocks=0) for stage in preset.stages),
        matching=replace(matching, pool=_FEW, pairs=_FEW),
    )
    damaged = None if data.damaged is None else data.damaged[:_PICTURES]
    short_data = replace(data, train=data.train[:_PICTURES], damaged=damaged, known="")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = 0.0

    def timed(action: Callable[[], object]) -> float:
        started = clock()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - started

    with tempfile.TemporaryDirectory() as folder:
        run = Run(short, short_data, Path(folder), seed=0, device=device, bf16=bf16, provenance={})
        run.batches.draw = lambda pictures, _: pictures  # to make the first drawing takes seconds
        z = run.batches.latents(_MORE, RngStream.SAMPLES, 0)
        for stage in preset.stages:
            times = []
            # The first step allocates memory, the last one begins the next stage.
            for rows in (_MORE, _FEW, _MORE, _FEW):
                run.batches.size = min(rows, len(short_data.train))
                times.append(timed(run.step_once))
            _, few_rows, more_rows, _ = times
            row = max(0.0, more_rows - few_rows) / (_MORE - _FEW)
            step = few_rows + row * (min(preset.batch, len(data.train)) - _FEW)
            if stage.weights.need("pairs"):
                latents = matching.pool / matching.pool_refresh
                latents += matching.pairs / matching.pairs_refresh
                step += latents * timed(lambda: run.forward(z)) / _MORE
            seconds += stage.steps * step
    torch.set_num_threads(threads)
    return seconds


def in_words(seconds: float) -> str:
    """A duration with the precision of an estimate: `50 s`, `40 min` or `2.5 h`."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
