"""The training loop.

A run is a list of stages; a stage is a set of weights on the terms of
`model_export.training.losses`. If a run is stopped, the same command continues it bit for bit on
the same machine, for two reasons: every random number is a function of (seed, stream, step), and a
run stops only where pool and pairs, if it has them, are about to be refreshed, so they need not be
saved.
"""

import copy
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.utils import save_image

from model_export.data.datasets import Dataset
from model_export.data.pens import draw_pens
from model_export.errors import UserError
from model_export.files import atomic_write, file_lock
from model_export.progress import progress
from model_export.training import checkpoint as checkpoints
from model_export.training import critics
from model_export.training.batches import BatchBuilder, RngStream, TrainingBatch, derive_seed
from model_export.training.checkpoint import Checkpoint, continued_preset
from model_export.training.crisp import FORMS, Crisp
from model_export.training.crisp_objective import CrispObjective, new_adversary
from model_export.training.critics import CriticTrainer
from model_export.training.log import open_log
from model_export.training.network import Autoencoder, averaged_model
from model_export.training.objective import Objective, health
from model_export.training.perceptual import PerceptualNetwork, fit, new_network
from model_export.training.presets import Preset
from model_export.training.restorer import build_network
from model_export.training.signals import stop_signal
from model_export.training.stages import Stage

LOG = "log.jsonl"
_LOG_EVERY = 50
_FIRST_GRID_S = 60.0  # from the start of a command to its first grid of samples
_GRID_S = 180.0  # between grids
_GRID_SIDE = 8
_BLOCK_PICTURES = 8192  # from which the blocks learn to draw
_PALETTE_PICTURES = 256
_PARTS_PICTURES = 16_384  # of whose codes the parts learn their forms
_SCALING_PICTURES = 2048  # pictures that give mean and deviation of what critics see


class Interrupted(Exception):
    """The run received a stop signal and wrote a checkpoint."""


class Run:
    """One training run. If ``out`` holds a checkpoint, that run continues; else one begins.

    ``channels_last`` keeps weights and activations in NHWC order, which changes results by rounding
    only. With ``keep`` above 1 the last checkpoints stay beside `checkpoint.pt` as
    `checkpoint-STEP.pt`. Both may change when a run continues.
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
        channels_last: bool = False,
        keep: int = 1,
    ) -> None:
        if keep < 1:
            raise UserError("--keep must be at least 1")
        file = out / checkpoints.FILE
        saved = checkpoints.load(file) if file.is_file() else None
        if saved is not None:
            preset = continued_preset(preset, saved, out=out, data=data, seed=seed, bf16=bf16)
        self.preset = preset
        self.out = out
        self.seed = seed
        self.device = device
        self.bf16 = bf16
        self._keep = keep
        self.provenance = {**provenance, "bf16": bf16}
        self.data: dict[str, Any] = {
            "name": data.name,
            "sha256": data.sha256,
            "licence": data.licence,
            "pictures": len(data.train),
        }
        self.stage = 0
        self.stage_step = 0
        self.step = 0
        self.teacher: Autoencoder | None = None
        self.perceptual: PerceptualNetwork | None = None
        if any(stage.weights.need("features") for stage in preset.stages):
            torch.manual_seed(derive_seed(seed, RngStream.PERCEPTUAL, 0))
            self.perceptual = new_network(data).to(device)
        self._pictures = data
        self._perceptual_done = False
        self.critics: CriticTrainer[Any] | None = None
        self._changed = saved is not None and Preset.from_dict(saved.preset) != preset
        pictures = data.train.to(device)
        damaged = None if data.damaged is None else data.damaged.to(device)
        self.batches = BatchBuilder(preset, pictures, seed=seed, damaged=damaged)
        if preset.network.palette and data.known == "avatars64":
            self.batches.drawn = [each.to(device) for each in draw_pens(data)]
        torch.manual_seed(derive_seed(seed, RngStream.INIT, 0))
        # torch converts parameters of four dimensions only. The types of 2.13 lack the argument.
        layout: dict[str, Any] = {"memory_format": torch.channels_last} if channels_last else {}
        self.network = build_network(preset.network).to(device, **layout)
        if saved is not None:
            self._resume(saved)
        else:
            if isinstance(self.network, Crisp):
                pictures = self.batches.example_pictures(_PALETTE_PICTURES)
                self.network.draw.fit_palette(
                    pictures, self.batches.generator(RngStream.PALETTE, 0)
                )
            self._start_stage()

    def train(self) -> None:
        """Train to the end of the last stage, or write a checkpoint and raise `Interrupted` after
        SIGINT or SIGTERM.

        A finished run stores what the command changes of its card.
        """
        with file_lock(self.out):
            if self._changed and self.step == self.preset.steps:
                self.save()
            if (
                self.perceptual is not None
                and not self._perceptual_done
                and self.step < self.preset.steps
            ):
                seed = derive_seed(self.seed, RngStream.PERCEPTUAL, 1)
                fit(
                    self.perceptual,
                    self._pictures,
                    seed,
                    self.device,
                    self.batches.draw,
                    steps=self.preset.perceptual_steps,
                )
                self._perceptual_done = True
            self._train()

    @property
    def _parts(self) -> dict[str, Any]:
        """What training changes, by its field of a checkpoint."""
        return {
            "network": self.network,
            "average": self.average,
            "optimiser": self.optimiser,
            "teacher": self.teacher,
            "critic": self.critics,
            "perceptual": self.perceptual,
        }

    def save(self) -> None:
        """Write the checkpoint."""
        states: dict[str, Any] = {
            name: None if part is None else part.state_dict() for name, part in self._parts.items()
        }
        state = Checkpoint(
            preset=self.preset.to_dict(),
            seed=self.seed,
            stage=self.stage,
            stage_step=self.stage_step,
            step=self.step,
            data=self.data,
            provenance=self.provenance,
            **states,
        )
        checkpoints.save(state, self.out / checkpoints.FILE)
        checkpoints.rotate(self.out, self.step, self._keep)

    # Where a run may stop in a stage with pool and pairs, for example with pool_refresh = 4,
    # pairs_refresh = 2 and checkpoint_every = 8:
    #
    #   steps done in the stage   0   1   2   3   4   5   6   7   8   9
    #   the next builds a pool    ×               ×               ×
    #   the next builds pairs     ×       ×       ×       ×       ×
    #   a signal stops the run    ×               ×               ×
    #   checkpoint                                                ×
    #
    # Other stages stop after any step. A signal writes a checkpoint where it stops, so it loses no
    # step; a crash loses those after the last checkpoint. Both continue where pool and pairs are
    # built anew, from the same weights as in a run that was never interrupted.
    def _train(self) -> None:
        bar = progress(total=self.preset.steps, initial=self.step, unit="step")
        grid_due = time.monotonic() + _FIRST_GRID_S
        stop: float = math.inf

        def answer() -> str:
            nonlocal stop
            stop = self._next_stop()
            return f"stopping at step {stop}; again to stop now"

        with stop_signal(answer), bar, open_log(self.out / LOG, self.step) as log:
            while self.step < self.preset.steps:
                stage = self.preset.stages[self.stage].name
                terms = self.step_once()
                last = self.step == self.preset.steps
                saving = last or self.stage_step % self.preset.checkpoint_every == 0
                bar.update()
                if self.step % _LOG_EVERY == 0 or saving:
                    values = self._values(terms)
                    log(self.step, stage, values)
                    bar.set_postfix_str(" ".join(f"{k} {v:.4f}" for k, v in values.items()))
                stopping = not last and self.step >= stop
                if saving or stopping:
                    self.save()
                if last or time.monotonic() >= grid_due:
                    bar.write(f"samples: {self._save_samples()}")
                    grid_due = time.monotonic() + _GRID_S
                if stopping:
                    raise Interrupted

    def _next_stop(self) -> int:
        """The first step after this one at which the run may stop."""
        stage = self.preset.stages[self.stage]
        interval = self.preset.refresh_interval if stage.weights.need("pairs") else 1
        left = interval - self.stage_step % interval
        return self.step + min(left, stage.steps - self.stage_step)

    def step_once(self) -> dict[str, Tensor]:
        """One optimiser step; returns the terms of the loss."""
        stage = self.preset.stages[self.stage]
        # A function of the step alone, in place of torch's schedulers: there is no state to
        # restore, and a stage can be lengthened.
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(stage, self.stage_step)
        self.network.train()
        batch = self.batches.build(self.step, self.stage_step, stage, self.forward)
        if self.critics is not None:
            self.critics.lr = self.critics.peak * learning_rate(stage, self.stage_step) / stage.lr
            if self.teacher is not None and batch.z is not None:
                y = self.forward(batch.z)
                with self._autocast():
                    self.critics.step(*map(self.teacher.features, (batch.x, y)))
        terms = self._backward(batch)
        if stage.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), stage.clip)
        self.optimiser.step()
        self.average.update_parameters(self.network)
        self.step += 1
        self.stage_step += 1
        if self.stage_step == stage.steps:
            self._end_stage()
        return terms

    def _backward(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Compute the gradients of the parameters; returns the terms."""
        self.optimiser.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self.objective.loss(self.network, batch)
        torch.autograd.backward(loss.total)
        return loss.terms

    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        """f(z) without gradient, in the precision of the run."""
        with self._autocast():
            y: Tensor = self.network(z)
        return y

    def _values(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """What the log shows of a step."""
        values = {name: float(value) for name, value in terms.items()}
        if not all(map(math.isfinite, values.values())):
            raise UserError(
                f"step {self.step}: the loss is not finite; the last checkpoint is kept"
            )
        ratio = health(values)
        return values if ratio is None else {**values, "health": ratio}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _start_stage(self, *, fit: bool = True) -> None:
        stage = self.preset.stages[self.stage]
        # Before the blocks are fitted, so that f learns from a network without them.
        autoencoder = self.network if isinstance(self.network, Autoencoder) else None
        self.teacher = None
        if autoencoder is not None and stage.teacher:
            self.teacher = copy.deepcopy(autoencoder).requires_grad_(False).eval()
        if fit and autoencoder is not None and autoencoder.blocks is not None and stage.fit_blocks:
            pictures = self.batches.example_pictures(_BLOCK_PICTURES)
            generator = self.batches.generator(RngStream.BLOCKS, 0)
            autoencoder.blocks.fit(pictures, stage.fit_blocks, self.batches.size, generator)
        self.average: AveragedModel = averaged_model(self.network).eval()
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=stage.lr, betas=stage.betas)
        self.critics = self._new_critics(stage)
        self.objective = self._new_objective(stage)

    def _new_objective(self, stage: Stage) -> Objective | CrispObjective:
        kind = stage.distance or self.preset.distance
        perceptual = self.perceptual
        if isinstance(self.network, Crisp) and perceptual is not None:
            return CrispObjective(
                network=self.network,
                stage=stage,
                kind=kind,
                perceptual=perceptual,
                trainer=self.critics,
            )
        features = None
        if stage.weights.need("features") and perceptual is not None:
            features = partial(perceptual.features, pixels=stage.perceptual_pixels)
        teacher = self.teacher
        trainer = self.critics
        return Objective(
            stage=stage,
            kind=kind,
            teacher=teacher,
            scores=None
            if teacher is None or trainer is None
            else lambda y: trainer.critics(teacher.features(y)),
            features=features,
        )

    @torch.no_grad()
    def _new_critics(self, stage: Stage) -> CriticTrainer[Any] | None:
        if stage.weights.critic <= 0:
            return None
        torch.manual_seed(derive_seed(self.seed, RngStream.DISCRIMINATOR, self.step))
        pictures = self.batches.example_pictures(min(_SCALING_PICTURES, self.data["pictures"]))
        if isinstance(self.network, Crisp) and self.perceptual is not None:
            generator = self.batches.generator(RngStream.DISCRIMINATOR, self.step)
            adversary = new_adversary(self.network, self.perceptual, pictures, generator)
            return CriticTrainer(adversary, peak=2 * critics.LR)
        if self.teacher is None:
            return None
        return CriticTrainer(critics.discriminator(self.teacher.features(pictures)))

    def _end_stage(self) -> None:
        if self.step == self.preset.steps:
            network = self.average.module
            if isinstance(network, Crisp) and self.preset.network.parts:
                count = min(max(FORMS, self.data["pictures"]), _PARTS_PICTURES)
                network.fit_parts(self.batches.example_pictures(count))
            return
        # The averaged weights are better than the last ones, so the next stage starts from them.
        self.network.load_state_dict(self.average.module.state_dict())
        self.stage = self.stage + 1
        self.stage_step = 0
        self._start_stage()

    def _resume(self, saved: Checkpoint) -> None:
        # `_start_stage` makes teacher, average, optimiser and discriminator of the right shapes
        # from a network that is not trained; then the saved states replace all their values.
        self.stage = saved.stage
        self.stage_step = saved.stage_step
        self.step = saved.step
        self._start_stage(fit=False)
        for name, part in self._parts.items():
            if part is not None and (state := getattr(saved, name)) is not None:
                part.load_state_dict(state)
        self._perceptual_done = saved.perceptual is not None
        origin = saved.provenance
        if saved.step < self.preset.steps:
            origin = _continued(origin, self.provenance, saved.step)
        # The command that names all options of the preset.
        command = (self.provenance if self._changed else saved.provenance).get("command")
        self.provenance = {**origin, "command": command}

    @torch.no_grad()
    def _save_samples(self) -> Path:
        """Write a picture: f(z), f(f(z)), pictures x and f(x); z are latents, or damaged pictures.

        Returns its path.
        """
        z = self.batches.inputs(_GRID_SIDE**2, RngStream.SAMPLES, 0)
        x = self.batches.example_pictures(_GRID_SIDE**2 // 2)
        path = self.out / "samples" / f"{self.step:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        y = self.average(z)
        grid = torch.cat([y, self.average(y), x, self.average(x)])
        with atomic_write(path) as file:
            save_image((grid + 1) / 2, file, nrow=_GRID_SIDE * 2, padding=1, format="png")
        return path


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up, then a cosine that reaches 0 at the end of the stage."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    return stage.lr * 0.5 * (1.0 + math.cos(math.pi * step / stage.steps))


def _continued(before: dict[str, Any], now: dict[str, Any], step: int) -> dict[str, Any]:
    """The provenance of the first command. If other sources continue the run, they are listed with
    their first step.
    """
    history = before.get("continued", [])
    latest = history[-1]["sources"] if history else before.get("sources")
    if now.get("sources") == latest:
        return before
    entry = {"from_step": step, "sources": now.get("sources"), "commit": now.get("commit")}
    return {**before, "continued": [*history, entry]}
