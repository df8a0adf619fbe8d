"""The training loop.

A run is a list of stages; a stage is a set of weights on the terms of `model_export.training.losses`. Stopping and starting
again with the same command continues bit for bit on one machine: randomness is a function of (seed, stream, step),
and checkpoints are written only where pool and pairs are about to be refreshed.
"""

import copy
import gc
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torchvision.utils import save_image
from tqdm import tqdm

from model_export.data.datasets import Dataset, to_model_range
from model_export.data.noise import NoiseSampler, frequency_statistics
from model_export.errors import UserError
from model_export.files import alone, atomic
from model_export.stop_signals import stop_requests
from model_export.training import checkpoint as checkpoints
from model_export.training.batches import Batch, Batches, Stream, mixed_seed
from model_export.training.checkpoint import Checkpoint
from model_export.training.discriminator import SCALED_BY, Critic, Opponent
from model_export.training.execution import Execution, held_back
from model_export.training.log import Log
from model_export.training.network import Autoencoder, averaged
from model_export.training.objective import Objective, health
from model_export.training.presets import Preset, Stage
from model_export.training.throughput import COMPUTE, Clock, Throughput

LOG = "log.jsonl"
_BOARD = "tensorboard"
_LOG_EVERY = 50
_GRID_SIDE = 8


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
        execution: how to compute it, and on which ranks; only the first writes.

    Raises:
        UserError: the folder holds a run of another preset, seed, precision or data set, or the batch does not split.
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
        execution: Execution | None = None,
    ) -> None:
        self.preset, self.out, self.seed, self.device, self.bf16 = preset, out, seed, device, bf16
        self.execution = execution or Execution()
        self.execution.check(preset, len(data.train))
        self.ranks = self.execution.ranks
        self.provenance = {**provenance, "bf16": bf16, "execution": self.execution.to_dict()}
        self.data = {
            "name": data.name,
            "sha256": data.sha256,
            "licence": data.licence,
            "pictures": len(data.train),
        }
        self.stage, self.stage_step, self.step = 0, 0, 0
        self.teacher: Autoencoder | None = None
        self.opponent: Opponent | None = None
        self._pictures = data.train
        self.throughput: list[tuple[str, Throughput]] = []  # of this process, by stage
        self._clock, self._warned = Clock(device), False
        statistics = frequency_statistics(data.train) if preset.noise == "frequency" else None
        self.noise = NoiseSampler(preset.shape, statistics)
        torch.manual_seed(mixed_seed(seed, Stream.INIT, 0))
        self.network = self.execution.placed(Autoencoder(preset.network), device)
        found = out / checkpoints.FILE
        if found.is_file():
            self._resume(checkpoints.load(found))
        else:
            self._enter_stage()
        self._compiled = self.execution.compiled(self.network)
        self._f = self._compiled
        self.batches = Batches(
            preset, data.train.to(device), self.noise, seed=seed, clock=self._clock, ranks=self.ranks
        )

    def train(self) -> None:
        """Run to the end of the last stage.

        Raises:
            Interrupted: SIGINT or SIGTERM came; a checkpoint was written first.
            UserError: the loss is no longer finite, or another process trains in the same folder.
        """
        with alone(self.out) if self.ranks.main else nullcontext():
            self._check_together()
            self._f = self.execution.parallel(self._compiled)
            try:
                self._train()
            finally:
                # What averages gradients must be gone before the process group goes: whichever goes last waits for the
                # group's threads, and only the group itself does so without the interpreter's lock that they may need.
                self._f = self._compiled
                if self.ranks.size > 1:
                    gc.collect()  # it refers to itself

    @property
    def total(self) -> Throughput:
        """Of all that this process has trained."""
        none = Throughput(steps=0, pictures=0, seconds=0.0, phases={})
        return sum((measured for _, measured in self.throughput), none)

    def _train(self) -> None:
        opened = self._log()
        bar = tqdm(
            total=self.preset.steps, initial=self.step, unit="step", mininterval=1.0, disable=not self.ranks.main
        )
        with stop_requests() as asked, bar, opened as log:
            self._clock.start()
            while self.step < self.preset.steps:
                stage = self.preset.stages[self.stage].name
                terms = self._step()
                last = self.step == self.preset.steps
                saving = last or self.stage_step % self.preset.checkpoint_every == 0
                bar.update()
                if self.step % _LOG_EVERY == 0 or saving:
                    with self._clock.phase("log"):
                        self._report(terms, stage, log, bar)
                if saving:
                    self._save_with_grid()
                stopping = not last and self.stage_step % self._boundary() == 0 and self._stopping(asked())
                if stopping and not saving:
                    self.save()
                if stopping or last or self.stage_step == 0:
                    self._lap(stage, log)
                if stopping:
                    raise Interrupted

    def save(self) -> None:
        """Write the checkpoint; on other ranks than the first, nothing."""
        if not self.ranks.main:
            return
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
                critic=None if self.opponent is None else self.opponent.state_dict(),
                statistics=self.noise.statistics,
                data=self.data,
                provenance=self.provenance,
            ),
            self.out / checkpoints.FILE,
        )
        checkpoints.rotate(self.out, self.step, self.execution.keep)

    def _step(self) -> dict[str, Tensor]:
        stage = self.preset.stages[self.stage]
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(stage, self.stage_step)
        self.network.train()
        batch = self.batches.at(self.step, self.stage_step, stage, self._outputs)
        with self._clock.phase(COMPUTE):
            if self.opponent is not None and batch.z is not None:
                lr = stage.critic_lr * learning_rate(stage, self.stage_step) / stage.lr
                self.opponent.learn(batch.x, self._outputs(batch.z), lr, self._autocast())
            terms = self._gradients(batch)
            self.optimiser.step()
            self.average.update_parameters(self.network)
        self._clock.step(self.batches.size)
        self.step += 1
        self.stage_step += 1
        if self.stage_step == stage.steps:
            self._leave_stage()
        return terms

    def _gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Leave the gradients of the whole batch in the parameters; returns the terms."""
        self.optimiser.zero_grad(set_to_none=True)
        parts = batch.split(self.execution.accumulate)
        means: dict[str, Tensor] = {}
        for i, part in enumerate(parts, start=1):
            with held_back(self._f, last=i == len(parts)):
                with self._autocast():
                    terms = self.objective.terms(self._f, self.network, part)
                torch.autograd.backward(self.objective.total(terms) / len(parts))
            for name, value in terms.items():
                means[name] = means.get(name, torch.zeros_like(value)) + value.detach() / len(parts)
        return means

    @torch.no_grad()
    def _outputs(self, z: Tensor) -> Tensor:
        with self._autocast():
            y: Tensor = self._compiled(z)
        return y

    def _report(self, terms: dict[str, Tensor], stage: str, log: Log | None, bar: "tqdm[Any]") -> None:
        means = self.ranks.mean(torch.stack(list(terms.values()))).tolist()
        values = dict(zip(terms, means, strict=True))
        if not all(map(math.isfinite, means)):
            raise UserError(f"step {self.step}: the loss is not finite; the last checkpoint is kept")
        ratio = health(values)
        if ratio is not None:
            values["health"] = ratio
            if ratio > 1.0 and not self._warned and self.ranks.main:
                self._warned = True
                tqdm.write(
                    f"warning: step {self.step}: idempotence / reconstruction is {ratio:.2f}; where it stays above 1, "
                    "the samples collapse (good runs end at 0.55 to 0.83)",
                    file=sys.stderr,
                )
        if log is not None:
            log.terms(self.step, stage, values)
        bar.set_postfix_str(" ".join(f"{k} {v:.4f}" for k, v in values.items()))

    def _lap(self, stage: str, log: Log | None) -> None:
        measured = self._clock.lap()
        self.throughput.append((stage, measured))
        if log is not None:
            log.throughput(self.step, stage, measured)

    def _log(self) -> "Log | nullcontext[None]":
        if not self.ranks.main:
            return nullcontext()
        return Log(self.out / LOG, self.step, board=self.out / _BOARD if self.execution.tensorboard else None)

    def _stopping(self, asked: bool) -> bool:
        """Whether any rank was asked to stop."""
        return bool(self.ranks.any(torch.tensor(asked, device=self.device)))

    def _check_together(self) -> None:
        """Refuse to train where the ranks did not find the same checkpoint, as on machines that share no folder."""
        place = torch.tensor([float(self.step)], device=self.device)
        if bool(self.ranks.any(self.ranks.mean(place) != place)):
            raise UserError(f"the ranks see different checkpoints; {self.out} must be one folder for all")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _boundary(self) -> int:
        matching = self.preset.matching_of(self.preset.stages[self.stage])
        return math.lcm(matching.pool_refresh, matching.pairs_refresh)

    def _enter_stage(self) -> None:
        stage = self.preset.stages[self.stage]
        self.average: AveragedModel = averaged(self.network, self.preset.ema)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=stage.lr, betas=stage.betas)
        self.teacher = _frozen_copy(self.network) if stage.weights.teacher else None
        self.opponent = self._opponent(stage, self.teacher)
        self.objective = Objective(
            stage=stage,
            kind=self.preset.distance,
            teacher=None if self.teacher is None else self.execution.compiled(self.teacher),
            scores=None if self.opponent is None else self.opponent.scores,
        )

    def _opponent(self, stage: Stage, teacher: Autoencoder | None) -> Opponent | None:
        if teacher is None or stage.weights.critic <= 0:
            return None
        torch.manual_seed(mixed_seed(self.seed, Stream.CRITIC, self.step))
        some = np.random.default_rng(self.seed).permutation(len(self._pictures))[:SCALED_BY]
        pictures = to_model_range(self._pictures[torch.from_numpy(some)].to(self.device))
        return Opponent(Critic(teacher.codes, pictures), stage.critic_lr, self.ranks)

    def _leave_stage(self) -> None:
        if self.step == self.preset.steps:
            return
        # The average is the better network; the next stage starts from it.
        self.network.load_state_dict(self.average.module.state_dict())
        self.stage, self.stage_step = self.stage + 1, 0
        self._enter_stage()

    def _resume(self, found: Checkpoint) -> None:
        recorded = _as_written_now(found.preset)
        extended = _is_extended(self.preset, recorded, found.step)
        for what, ours, theirs in (
            ("preset or options", self.preset.to_dict(), self.preset.to_dict() if extended else recorded),
            ("--seed", self.seed, found.seed),
            ("--precision", self.bf16, found.provenance.get("bf16")),
            ("data set", self.data["sha256"], found.data.get("sha256")),
        ):
            if ours != theirs:
                raise UserError(f"{self.out} holds a run with another {what}; choose another --out")
        self.stage, self.stage_step, self.step = found.stage, found.stage_step, found.step
        self._enter_stage()
        self.network.load_state_dict(found.network)
        self.average.load_state_dict(found.average)
        self.optimiser.load_state_dict(found.optimiser)
        if found.teacher is not None and self.teacher is not None:
            self.teacher.load_state_dict(found.teacher)
        if found.critic is not None and self.opponent is not None:
            self.opponent.load_state_dict(found.critic)
        self.provenance = _continued(found.provenance, self.provenance, found.step)
        if extended:
            self._leave_stage()

    def _save_with_grid(self) -> None:
        with self._clock.phase("checkpoint"):
            self.save()
            if self.ranks.main:
                self._grid()

    @torch.no_grad()
    def _grid(self) -> None:
        z = self.noise.sample(_GRID_SIDE**2, self.batches.generator(Stream.GRID, 0))
        folder = self.out / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        self.average.eval()
        y = self.average(z)
        grid = torch.cat([y, self.average(y)])  # upper half f(z), lower half f(f(z))
        with atomic(folder / f"{self.step:07d}.png") as file:
            save_image((grid + 1) / 2, file, nrow=_GRID_SIDE * 2, padding=1, format="png")


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up, then cosine to 0 at the stage's end."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    return stage.lr * 0.5 * (1.0 + math.cos(math.pi * step / stage.steps))


def _as_written_now(recorded: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's preset with the defaults of fields that are younger than it; as it is where it is none of ours."""
    try:
        return Preset.from_dict(recorded).to_dict()
    except (KeyError, TypeError, ValueError):
        return recorded


def _is_extended(preset: Preset, recorded: dict[str, Any], step: int) -> bool:
    """Whether the recorded preset's run is at its end, and ``preset`` only adds further stages."""
    before, now = dict(recorded), preset.to_dict()
    done, stages = before.pop("stages"), now.pop("stages")
    return bool(
        before == now
        and len(stages) > len(done)
        and stages[: len(done)] == done
        and step == sum(stage["steps"] for stage in done)
    )


def _continued(before: dict[str, Any], now: dict[str, Any], step: int) -> dict[str, Any]:
    """The first command's provenance; where other sources go on, they are listed with the step they begin at."""
    history = before.get("continued", [])
    latest = history[-1]["sources"] if history else before.get("sources")
    if now.get("sources") == latest:
        return before
    entry = {"from_step": step, "sources": now.get("sources"), "commit": now.get("commit")}
    return {**before, "continued": [*history, entry]}


def _frozen_copy(network: Autoencoder) -> Autoencoder:
    return copy.deepcopy(network).requires_grad_(False).eval()
