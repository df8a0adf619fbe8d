import dataclasses
import fcntl
import functools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model_export.data.datasets import Dataset
from model_export.errors import UserError
from model_export.training import checkpoint as checkpoints
from model_export.training import losses
from model_export.training.batches import TrainingBatch
from model_export.training.network import NetworkConfig
from model_export.training.presets import PRESETS, Choices, Preset, with_overrides
from model_export.training.stages import Stage, Weights, crisp_stages, ign_stages
from model_export.training.train import Interrupted, Run, learning_rate
from tests.helpers.folders import contents

TINY = PRESETS["tiny"]
# Checkpoints after 8 steps of a stage, stops at every fourth step.
NAIGN = dataclasses.replace(
    TINY,
    stages=tuple(
        dataclasses.replace(s, steps=n) for s, n in zip(TINY.stages, (16, 8, 8), strict=True)
    ),
)
IGN = dataclasses.replace(
    NAIGN,
    objective="ign",
    distance="l1",
    stages=ign_stages(16, lr=1e-3),
)
EXACT = dataclasses.replace(
    NAIGN,
    network=dataclasses.replace(NAIGN.network, blocks=2),
    stages=(
        dataclasses.replace(NAIGN.stages[0], steps=8),
        Stage(
            name="exact",
            steps=12,
            lr=1e-3,
            weights=Weights(project=0.5, settle=0.5, drifting=0.02),
            warmup=2,
            drift_pictures=24,
            fit_blocks=5,
        ),
    ),
)
CRISP = dataclasses.replace(
    NAIGN,
    network=NetworkConfig(
        size=TINY.network.size,
        channels=1,
        widths=(8,),
        bottleneck=4,
        palette=3,
        parts=((1, 1, 2, 2),),
    ),
    stages=tuple(
        dataclasses.replace(stage, steps=n, warmup=2, drift_pictures=stage.drift_pictures and 40)
        for stage, n in zip(crisp_stages(1, 1, 1), (3, 5, 14), strict=True)
    ),
)
BF16 = dataclasses.replace(NAIGN, name="bf16")
FIRST_STAGE = dataclasses.replace(NAIGN, stages=NAIGN.stages[:1])


@pytest.fixture(scope="module")
def finished(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Preset], Path]:
    """The folder of an uninterrupted run; each preset is trained once. Read-only."""

    @functools.cache
    def folder(preset: Preset) -> Path:
        out = tmp_path_factory.mktemp("finished")
        run(preset, data, out).train()
        return out

    return folder


@pytest.fixture
def first_stage(finished: Callable[[Preset], Path], tmp_path: Path) -> Path:
    """A finished run of `FIRST_STAGE` that the test may change."""
    out = tmp_path / "first_stage"
    shutil.copytree(finished(FIRST_STAGE), out)
    return out


def run(
    preset: Preset,
    data: Dataset,
    out: Path,
    *,
    seed: int = 0,
    bf16: bool | None = None,
    **more: Any,
) -> Run:
    return Run(
        preset,
        data,
        out,
        seed=seed,
        device=torch.device("cpu"),
        bf16=preset.name == "bf16" if bf16 is None else bf16,
        provenance={"command": "test", "sources": "test"},
        **more,
    )


def state(out: Path) -> dict[str, Any]:
    """Everything in the checkpoint that training changes."""
    saved = checkpoints.load(out / checkpoints.FILE)
    return {
        "network": saved.network,
        "average": saved.average,
        "optimiser": saved.optimiser["state"],
        "perceptual": saved.perceptual,
        "critic": saved.critic and (saved.critic["critic"], saved.critic["optimiser"]["state"]),
        "position": (saved.stage, saved.stage_step, saved.step),
    }


def losses_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_identical(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_identical(a[key], b[key])
    elif isinstance(a, tuple):
        for one, other in zip(a, b, strict=True):
            assert_identical(one, other)
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def disturb(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Do something in the middle of a step, once."""
    original = Run._backward
    calls = iter(range(1, 10**6))

    def backward(self: Run, batch: TrainingBatch) -> dict[str, Tensor]:
        if next(calls) == step:
            action()
        return original(self, batch)

    monkeypatch.setattr(Run, "_backward", backward)


def crash() -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("preset", "step", "number"),
    [
        (NAIGN, 7, signal.SIGINT),
        (NAIGN, 27, signal.SIGTERM),
        (EXACT, 14, signal.SIGINT),
        (CRISP, 14, signal.SIGINT),
        (BF16, 13, None),
    ],
    ids=["first-stage", "last-stage", "exact", "crisp", "bf16-crash"],
)
def test_a_run_that_stopped_or_crashed_continues_bit_for_bit(
    preset: Preset,
    step: int,
    number: signal.Signals | None,
    data: Dataset,
    tmp_path: Path,
    finished: Callable[[Preset], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        disturb(patch, step, crash if number is None else lambda: signal.raise_signal(number))
        stopped = run(preset, data, tmp_path)
        with pytest.raises(MemoryError if number is None else Interrupted):
            stopped.train()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    continued = run(preset, data, tmp_path)
    if number is None:
        assert continued.step == 8  # only the steps after the last checkpoint are lost
    else:
        assert step <= stopped.step == continued.step <= step + 4  # a run stops at the next refresh
    continued.train()
    assert_identical(state(tmp_path), state(finished(preset)))
    assert losses_of(tmp_path) == losses_of(finished(preset))
    assert not [name for name in contents(tmp_path) if "/." in name]  # no temporary file is left


@pytest.mark.parametrize("change", ["preset", "stages", "unknown", "seed", "precision", "data"])
def test_a_run_of_another_kind_is_left_alone(change: str, data: Dataset, first_stage: Path) -> None:
    preset = FIRST_STAGE
    differs = {
        "preset": "batch 16, now 8",
        "stages": "stages",
        "unknown": "another version",
        "seed": "seed 0, now 1",
        "precision": "precision fp32, now bf16",
        "data": f"data .*{data.sha256[:12]}, now .*{'0' * 12}",
    }
    if change == "preset":
        preset = dataclasses.replace(preset, batch=8)
    if change == "stages":
        preset = dataclasses.replace(
            NAIGN, stages=(NAIGN.stages[1], NAIGN.stages[0], NAIGN.stages[2])
        )
    if change == "unknown":
        newer = checkpoints.load(first_stage / checkpoints.FILE)
        newer.preset["from_the_future"] = 1
        checkpoints.save(newer, first_stage / checkpoints.FILE)
    if change == "data":
        data = dataclasses.replace(data, sha256="0" * 64)
    before = contents(first_stage)
    with pytest.raises(UserError, match=f"{differs[change]}.*choose another --out"):
        run(preset, data, first_stage, seed=int(change == "seed"), bf16=change == "precision")
    assert contents(first_stage) == before


@pytest.mark.parametrize("kept", ["all of it", "its start"])
def test_steps_may_grow(
    kept: str,
    data: Dataset,
    tmp_path: Path,
    finished: Callable[[Preset], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kept == "all of it":
        shutil.copytree(finished(NAIGN), tmp_path, dirs_exist_ok=True)
    else:
        with monkeypatch.context() as patch:
            disturb(patch, 18, lambda: signal.raise_signal(signal.SIGINT))
            with pytest.raises(Interrupted):
                run(NAIGN, data, tmp_path).train()  # in its second stage
    longer = with_overrides(NAIGN, Choices(steps=45))
    continued = run(longer, data, tmp_path, channels_last=True, keep=2)
    lengths = [stage.steps for stage in continued.preset.stages]
    assert lengths == ([16, 8, 21] if kept == "all of it" else [16, 15, 14])
    continued.train()
    assert state(tmp_path)["position"] == (2, lengths[2], 45)
    assert {path.name for path in tmp_path.glob("*.pt")} >= {
        "checkpoint-0000045.pt",
        "checkpoint.pt",
    }
    assert run(longer, data, tmp_path).step == 45  # the same command again finds it finished
    with pytest.raises(UserError, match="steps 45, now 32"):
        run(NAIGN, data, tmp_path)


def test_what_only_the_card_uses_may_change(data: Dataset, first_stage: Path) -> None:
    other = dataclasses.replace(
        FIRST_STAGE, name="other", licence="MIT", polarity="none", background=(1.0,)
    )
    changed = run(other, data, first_stage)
    assert changed.preset == other
    before = state(first_stage)
    changed.train()
    saved = checkpoints.load(first_stage / checkpoints.FILE)
    assert (Preset.from_dict(saved.preset), saved.provenance.get("continued")) == (other, None)
    assert_identical(state(first_stage), before)


def test_two_processes_do_not_train_in_one_folder(data: Dataset, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process trains"):
            run(NAIGN, data, tmp_path).train()
    finally:
        os.close(descriptor)


def test_a_loss_that_explodes_stops_the_run(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = losses.distance
    monkeypatch.setattr(losses, "distance", lambda *a: original(*a) * np.nan)
    with pytest.raises(UserError, match="not finite"):
        run(FIRST_STAGE, data, tmp_path).train()


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    stage = Stage(name="s", steps=1000, lr=2.0, weights=Weights(), warmup=100)
    assert learning_rate(stage, 0) == pytest.approx(0.02)
    assert learning_rate(stage, 99) == pytest.approx(2.0)
    assert learning_rate(stage, 500) == pytest.approx(1.0)
    assert learning_rate(stage, 999) < 1e-4


def test_every_picture_is_seen_once_an_epoch(data: Dataset, tmp_path: Path) -> None:
    trained = run(NAIGN, data, tmp_path)
    epoch = torch.cat([trained.batches.picture_indices(step) for step in range(15)])
    assert sorted(epoch.tolist()) == list(range(240))
    assert (
        trained.batches.picture_indices(15).tolist() != trained.batches.picture_indices(0).tolist()
    )


def test_another_memory_format_changes_results_by_rounding_only(
    data: Dataset, tmp_path: Path, finished: Callable[[Preset], Path]
) -> None:
    run(NAIGN, data, tmp_path, channels_last=True).train()
    for a, b in zip(
        *(state(out)["network"].values() for out in (finished(NAIGN), tmp_path)), strict=True
    ):
        # Adam divides tiny gradients by tiny moments
        torch.testing.assert_close(a, b, rtol=0, atol=5e-5)


def test_the_health_of_idempotence_is_logged(finished: Callable[[Preset], Path]) -> None:
    for line in losses_of(finished(IGN)):
        assert line["health"] == pytest.approx(line["idem"] / line["rec"])
    assert all("health" not in line for line in losses_of(finished(NAIGN)))
