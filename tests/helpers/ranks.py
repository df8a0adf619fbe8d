"""Train with several ranks on this machine: one process each, which meet through a file instead of a port."""

import multiprocessing
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from model_export.data.datasets import load_dataset
from model_export.training import losses
from model_export.training.checkpoint import Checkpoint
from model_export.training.execution import Execution, World
from model_export.training.losses import Function
from model_export.training.presets import Preset
from model_export.training.stages import Distance
from model_export.training.train import Interrupted, Run

_MOST_S = 120.0


@dataclass(frozen=True)
class Job:
    """A run. At step ``signal_at`` the last rank, and no other, receives SIGTERM."""

    preset: Preset
    out: Path
    signal_at: int | None = None


def train_in_ranks(size: int, jobs: Sequence[Job], data: Path, folder: Path) -> None:
    """Do all jobs, one after the other, in ``size`` new processes. Their errors appear on standard error."""
    context = multiprocessing.get_context("spawn")
    rest = (size, tuple(jobs), data, folder / "rendezvous")
    processes = [context.Process(target=_rank, args=(rank, *rest)) for rank in range(size)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(_MOST_S)
        assert [process.exitcode for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()


def train_alone(job: Job, data: Path, world: World | None = None) -> None:
    execution = Execution(world=world or World())
    run = Run(
        job.preset,
        load_dataset(str(data), size=job.preset.network.size, channels=job.preset.network.channels),
        job.out,
        seed=0,
        device=torch.device("cpu"),
        bf16=False,
        provenance={"command": "test"},
        execution=execution,
    )
    if job.signal_at is not None and execution.world.rank == execution.world.size - 1:
        _signal_in_step(run, job.signal_at)
    try:
        run.train()
    except Interrupted:
        assert job.signal_at is not None


def assert_gradients_agree(one: Checkpoint, other: Checkpoint) -> None:
    """Compare the optimiser's averages of the gradients, since its steps are the same for gradients of any size.

    The tolerance is for L1, whose gradient jumps where a difference changes its sign.
    """
    for a, b in zip(one.optimiser["state"].values(), other.optimiser["state"].values(), strict=True):
        assert float((a["exp_avg"] - b["exp_avg"]).norm()) <= 0.05 * float(b["exp_avg"].norm()) + 1e-6


def _signal_in_step(run: Run, step: int) -> None:
    original = losses.reconstruction

    def reconstruction(f: Function, x: Tensor, kind: Distance) -> Tensor:
        if run.step == step:
            losses.reconstruction = original
            signal.raise_signal(signal.SIGTERM)
        return original(f, x, kind)

    losses.reconstruction = reconstruction


def _rank(rank: int, size: int, jobs: Sequence[Job], data: Path, rendezvous: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=size)
    try:
        for job in jobs:
            train_alone(job, data, World(rank, size))
    finally:
        dist.destroy_process_group()
