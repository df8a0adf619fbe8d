"""The training loop.

A run is a list of stages; a stage is a set of weights on the terms of `model_export.losses`. Stopping and starting
again with the same command continues bit for bit on one machine: randomness is a function of (seed, stream, step),
and checkpoints are written only where pool and pairs are about to be refreshed.
"""

import copy
import dataclasses
import fcntl
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.utils import save_image
from tqdm import tqdm

from model_export import checkpoint as checkpoints
from model_export import losses
from model_export.checkpoint import Checkpoint
from model_export.data import Dataset, to_model_range
from model_export.ema import averaged
from model_export.errors import UserError
from model_export.matching import BalancedPairs, CandidatePool
from model_export.networks import Autoencoder
from model_export.noise import NoiseSampler, frequency_statistics
from model_export.presets import Preset, Stage

LOG = "log.jsonl"
_LOG_EVERY = 50
_GRID_SIDE = 8


class Stream(IntEnum):
    """Independent streams of randomness."""

    INIT = 0
    ORDER = 1
    NOISE = 2
    POOL = 3
    PAIRS = 4
    PARTNERS = 5
    DEGRADE = 6
    GRID = 7


class Interrupted(Exception):
    """The run was asked to stop; everything up to the last checkpoint is kept."""


class Run:
    """One training run in memory: what a checkpoint holds, alive.

    Args:
        preset: what to train.
        data: pictures.
        out: folder for checkpoint, log and sample grids; a run found there is continued.
        seed: of every draw.
        device: torch device.
        bf16: compute in bfloat16 autocast.
        provenance: kept in the checkpoint.

    Raises:
        UserError: the folder holds a run of another preset, seed, precision or data set.
    """

    def __init__(
        self,
        preset: Preset,
        data: Dataset,
        out: Path,
        *,
        seed: int,
        device: torch.device,
        bf16: bool,
        provenance: dict[str, Any],
    ) -> None:
        self.preset, self.out, self.seed, self.device, self.bf16 = preset, out, seed, device, bf16
        self.provenance = {**provenance, "bf16": bf16}
        self.data = {
            "name": data.name,
            "sha256": data.sha256,
            "licence": data.licence,
            "pictures": len(data.train),
        }
        self.pictures = data.train.to(device)
        self.stage, self.stage_step, self.step = 0, 0, 0
        self.teacher: nn.Module | None = None
        self._epoch, self._permutation = -1, torch.empty(0)
        statistics = frequency_statistics(data.train) if preset.noise == "frequency" else None
        torch.manual_seed(_mixed_seed(seed, Stream.INIT, 0))
        self.network = Autoencoder(preset.network).to(device)
        found = out / checkpoints.FILE
        if found.is_file():
            self._resume(checkpoints.load(found), statistics)
        else:
            self.noise = NoiseSampler(preset.shape, statistics)
            self._enter_stage()
        self.pool = CandidatePool(preset.matching, self.noise)
        self.pairs = BalancedPairs(preset.matching, self.noise)

    def train(self) -> None:
        """Run to the end of the last stage.

        Raises:
            Interrupted: SIGINT or SIGTERM came; a checkpoint was written first.
            UserError: the loss is no longer finite, or another process trains in the same folder.
        """
        with _alone(self.out):
            self._train()

    def _train(self) -> None:
        bar = tqdm(total=self.preset.steps, initial=self.step, unit="step", mininterval=1.0)
        with _stop_requests() as stopping, bar, _Log(self.out / LOG, self.step) as log:
            while self.step < self.preset.steps:
                stage = self.preset.stages[self.stage].name
                terms = self._step()
                last = self.step == self.preset.steps
                saving = last or self.stage_step % self.preset.checkpoint_every == 0
                bar.update()
                if self.step % _LOG_EVERY == 0 or saving:
                    values = {name: float(value) for name, value in terms.items()}
                    if not all(map(math.isfinite, values.values())):
                        raise UserError(f"step {self.step}: the loss is not finite; the last checkpoint is kept")
                    log.write(self.step, stage, values)
                    bar.set_postfix_str(" ".join(f"{k} {v:.4f}" for k, v in values.items()))
                if saving:
                    self.save()
                    self._grid()
                if stopping() and not last and self.stage_step % self._boundary() == 0:
                    self.save()
                    raise Interrupted

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoints.save(
            Checkpoint(
                preset=self.preset.to_dict(),
                seed=self.seed,
                stage=self.stage,
                stage_step=self.stage_step,
                step=self.step,
                network=self.network.state_dict(),
                average=self.average.state_dict(),
                optimiser=self.optimiser.state_dict(),
                teacher=None if self.teacher is None else self.teacher.state_dict(),
                statistics=self.noise.statistics,
                data=self.data,
                provenance=self.provenance,
            ),
            self.out / checkpoints.FILE,
        )

    def _step(self) -> dict[str, Tensor]:
        stage = self.preset.stages[self.stage]
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(stage, self.stage_step)
        self.network.train()
        with self._autocast():
            terms = self._terms(stage)
        total = sum((weight * terms[name] for name, weight in _active(stage)), torch.zeros((), device=self.device))
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        self.optimiser.step()
        self.average.update_parameters(self.network)
        self.step += 1
        self.stage_step += 1
        if self.stage_step == stage.steps:
            self._leave_stage()
        return {name: value.detach() for name, value in terms.items()}

    def _terms(self, stage: Stage) -> dict[str, Tensor]:
        """Every active term of this step, unweighted."""
        x = to_model_range(self.pictures[self._order(self.step, self.preset.batch).to(self.device)])
        kind, f = self.preset.distance, self.network
        weights = stage.weights
        # First, because autocast keeps the weights it casts for the whole step: cast first where gradients are off (by
        # the teacher's or the pool's passes), they would carry none.
        rec = losses.reconstruction(f, x, kind)
        terms = {"rec": rec.mean()}
        if weights.imle > 0:
            if self.stage_step % self.preset.matching.pool_refresh == 0:
                self.pool.refresh(f, self._generator(Stream.POOL))
            terms["imle"] = losses.imle(f, self.pool.nearest(x), x, kind)
        if weights.match > 0:
            terms["match"] = losses.matched(f, *self._pairs(), kind)
        if weights.distill > 0 and self.teacher is not None:
            z = self.noise.sample(len(x), self._generator(Stream.NOISE))
            terms["distill"] = losses.distillation(f, self.teacher, z, stage.teacher_steps, kind)
        if weights.project > 0:
            degraded = losses.add_noise(x, *self.preset.noise_range, self._generator(Stream.DEGRADE))
            terms["project"] = losses.projection(f, degraded, x, kind)
        if weights.idem > 0 or weights.tight > 0:
            y = f(self.noise.sample(len(x), self._generator(Stream.NOISE)))
            terms["idem"] = losses.idempotence(losses.frozen(f), y, kind)
            tight = losses.smooth_clamp(losses.tightness(f, y, kind), rec, stage.tight_clamp)
            terms["tight"] = tight.mean()
        return terms

    def _pairs(self) -> tuple[Tensor, Tensor]:
        every = self.preset.matching.pairs_refresh
        if self.stage_step % every == 0:
            generator = np.random.default_rng(_mixed_seed(self.seed, Stream.PARTNERS, self.step))
            count = min(self.preset.matching.pairs, len(self.pictures))
            chosen = torch.from_numpy(generator.choice(len(self.pictures), count, replace=False))
            pictures = to_model_range(self.pictures[chosen.to(self.device)])
            self.pairs.refresh(self.network, pictures, self._generator(Stream.PAIRS))
        return self.pairs.deal(self.stage_step % every, self.preset.batch)

    def _order(self, step: int, batch: int) -> Tensor:
        """Indices of a step's pictures: every epoch is a permutation of its own; its ragged end is left out."""
        count = len(self.pictures)
        batch = min(batch, count)
        epoch, place = divmod(step, count // batch)
        if self._epoch != epoch:
            generator = np.random.default_rng(_mixed_seed(self.seed, Stream.ORDER, epoch))
            self._epoch, self._permutation = epoch, torch.from_numpy(generator.permutation(count))
        return self._permutation[place * batch : (place + 1) * batch]

    def _generator(self, stream: Stream, step: int | None = None) -> torch.Generator:
        seed = _mixed_seed(self.seed, stream, self.step if step is None else step)
        return torch.Generator(self.device).manual_seed(seed)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _boundary(self) -> int:
        return math.lcm(self.preset.matching.pool_refresh, self.preset.matching.pairs_refresh)

    def _enter_stage(self) -> None:
        stage = self.preset.stages[self.stage]
        self.average: AveragedModel = averaged(self.network, self.preset.ema)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=stage.lr, betas=stage.betas)
        self.teacher = _frozen_copy(self.network) if stage.weights.distill > 0 else None

    def _leave_stage(self) -> None:
        if self.step == self.preset.steps:
            return
        # The average is the better network; the next stage starts from it.
        self.network.load_state_dict(self.average.module.state_dict())
        self.stage, self.stage_step = self.stage + 1, 0
        self._enter_stage()

    def _resume(self, found: Checkpoint, statistics: Tensor | None) -> None:
        extended = _is_extended(self.preset, found)
        for what, ours, theirs in (
            ("preset or options", self.preset.to_dict(), self.preset.to_dict() if extended else found.preset),
            ("--seed", self.seed, found.seed),
            ("--precision", self.bf16, found.provenance.get("bf16")),
            ("data set", self.data["sha256"], found.data.get("sha256")),
        ):
            if ours != theirs:
                raise UserError(f"{self.out} holds a run with another {what}; choose another --out")
        self.noise = NoiseSampler(self.preset.shape, statistics)
        self.stage, self.stage_step, self.step = found.stage, found.stage_step, found.step
        self._enter_stage()
        self.network.load_state_dict(found.network)
        self.average.load_state_dict(found.average)
        self.optimiser.load_state_dict(found.optimiser)
        if found.teacher is not None and self.teacher is not None:
            self.teacher.load_state_dict(found.teacher)
        self.provenance = _continued(found.provenance, self.provenance, found.step)
        if extended:
            self._leave_stage()

    @torch.no_grad()
    def _grid(self) -> None:
        z = self.noise.sample(_GRID_SIDE**2, self._generator(Stream.GRID, 0))
        folder = self.out / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        self.average.eval()
        y = self.average(z)
        grid = torch.cat([y, self.average(y)])  # upper half f(z), lower half f(f(z))
        with checkpoints.atomic(folder / f"{self.step:07d}.png") as file:
            save_image((grid + 1) / 2, file, nrow=_GRID_SIDE * 2, padding=1, format="png")


class _Log:
    """Losses as JSON lines; lines past the checkpoint that a run continues from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in lines if _step_of(line) <= step]
        with checkpoints.atomic(path) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())
        self._path = path

    def __enter__(self) -> "_Log":
        self._file = self._path.open("a")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, step: int, stage: str, values: dict[str, float]) -> None:
        """One line."""
        self._file.write(json.dumps({"step": step, "stage": stage, **values}) + "\n")
        self._file.flush()


def _step_of(line: str) -> float:
    """The step a line tells of; that of a line torn by a crash is never reached."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up, then cosine to 0 at the stage's end."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    return stage.lr * 0.5 * (1.0 + math.cos(math.pi * step / stage.steps))


def _active(stage: Stage) -> list[tuple[str, float]]:
    return [(name, weight) for name, weight in dataclasses.asdict(stage.weights).items() if weight > 0]


def _is_extended(preset: Preset, found: Checkpoint) -> bool:
    """Whether ``found`` is the end of a run of which ``preset`` only adds further stages."""
    before, now = dict(found.preset), preset.to_dict()
    done, stages = before.pop("stages"), now.pop("stages")
    return bool(
        before == now
        and len(stages) > len(done)
        and stages[: len(done)] == done
        and found.step == sum(stage["steps"] for stage in done)
    )


def _continued(before: dict[str, Any], now: dict[str, Any], step: int) -> dict[str, Any]:
    """The first command's provenance; where other sources go on, they are listed with the step they begin at."""
    history = before.get("continued", [])
    latest = history[-1]["sources"] if history else before.get("sources")
    if now.get("sources") == latest:
        return before
    entry = {"from_step": step, "sources": now.get("sources"), "commit": now.get("commit")}
    return {**before, "continued": [*history, entry]}


def _frozen_copy(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).requires_grad_(False).eval()


def _mixed_seed(seed: int, stream: int, step: int) -> int:
    """63 well-mixed bits from three numbers."""
    return int(np.random.SeedSequence([seed, stream, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go of when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise UserError(f"another process trains in {folder}") from exc
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Note SIGINT and SIGTERM instead of dying of them; a second one does kill."""
    asked = False

    def note(number: int, _: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
