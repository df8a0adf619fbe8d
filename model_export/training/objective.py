"""The objective of a stage: its active terms."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_export.data.corruptions import round_to_8_bits
from model_export.training import losses
from model_export.training.batches import TrainingBatch
from model_export.training.drifting import drifting_loss, feature_groups
from model_export.training.losses import Function, Loss
from model_export.training.restorer import Restorer
from model_export.training.stages import Distance, Stage

Features = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objective:
    """The terms of one stage of an `Autoencoder` or a `Restorer`."""

    stage: Stage
    kind: Distance
    teacher: Function | None = None  # the frozen network of an earlier stage, if the stage distills
    # the discriminator, if the stage has one: (B, C, H, W) → (B,) for every scale
    scores: Features | None = None
    features: Features | None = None  # perceptual ones, if a term compares them

    def loss(self, f: nn.Module, batch: TrainingBatch) -> Loss:
        """Every active term; `rec` always, but of a `Restorer`."""
        loss = Loss(self.stage.weights, self.kind)
        if isinstance(f, Restorer):
            self._add_restoring(loss, f, batch)
        else:
            self._add_all(loss, f, batch)
        return loss

    def _add_all(self, loss: Loss, f: nn.Module, batch: TrainingBatch) -> None:
        x = batch.x
        y = f(x)
        # Reconstruction comes first, even with weight 0: the clamp of tightness and `health` need
        # it.
        rec = losses.distance(y, x, self.kind)  # IGN, eq. 3: real pictures are fixed points
        loss.add("rec", rec.mean())
        loss.add_of_pictures(y, x)
        # every picture attracts its nearest sample f(z*) (IMLE; NAIGN, eq. 6)
        if batch.nearest is not None:
            loss.compare("imle", f(batch.nearest), x)
        # σ(i) is an optimal one-to-one assignment
        if batch.matched is not None and batch.partner is not None:
            loss.compare("match", f(batch.matched), batch.partner)
        outputs = []  # of f for latents and for corrupted pictures
        if batch.z is not None:
            outputs.append(f(batch.z))
            self._add_of_samples(loss, f, batch.z, outputs[0], rec)
        if batch.corrupted is not None:
            outputs.append(f(batch.corrupted))
            loss.compare("project", outputs[-1], x)
        drawn = []
        if batch.drawings is not None:
            once = f(batch.drawings)
            drawn = [once, f(once[::2].detach())]
        if self.features is not None:
            self._add_of_features(loss, self.features, batch, y, outputs, drawn)

    def _add_restoring(self, loss: Loss, f: Restorer, batch: TrainingBatch) -> None:
        """`project`, and `again` of every second row, rounded to 8 bits as in a file."""
        if batch.corrupted is None:
            raise ValueError("a Restorer learns from `project`")
        y = f(batch.corrupted)
        x = batch.x
        loss.compare("project", y, x)
        loss.add_of_pictures(y, x)
        if self.stage.weights.again > 0:
            settled = f.settle(batch.corrupted[::2], y[::2].detach())
            half = x.shape[3] // 2
            target = torch.cat([settled[..., :half], x[::2, ..., half:]], 3)
            loss.compare("again", f(round_to_8_bits(settled)), target)

    def _add_of_samples(self, loss: Loss, f: nn.Module, z: Tensor, y: Tensor, rec: Tensor) -> None:
        """The active terms of y = f(z). All share one forward pass for y."""
        weights = self.stage.weights
        if weights.idem > 0:
            # IGN, eq. 5: the gradient moves y, and f_copy stays.
            loss.compare("idem", losses.frozen(f)(y), y)
        if weights.tight > 0:
            # IGN, eq. 7: the gradient moves the outer f only.
            tight = -losses.distance(f(y.detach()), y.detach(), self.kind)
            loss.add("tight", losses.smooth_clamp(tight, rec, self.stage.tight_clamp).mean())
        if weights.distill > 0 and self.teacher is not None:
            loss.add(
                "distill",
                losses.distillation(y, self.teacher, z, self.stage.teacher_steps, self.kind),
            )
        if weights.settle > 0:
            fixed = y[: len(rec)].detach()  # the outer f learns to keep its outputs
            loss.compare("settle", f(fixed), fixed)
        if self.scores is not None:
            loss.add("critic", losses.generator_loss(self.scores(y)))

    def _add_of_features(
        self,
        loss: Loss,
        features_of: Features,
        batch: TrainingBatch,
        y: Tensor,
        outputs: list[Tensor],
        drawn: list[Tensor],
    ) -> None:
        """The active terms in perceptual features. All share one pass of their network for the
        outputs of f.
        """
        restoring = self.stage.weights.features > 0
        if not restoring and batch.drift_pictures is None:
            return
        # y comes last, so that the rows next to it are f(corrupted x), if there are any.
        features = features_of(torch.cat([*drawn, *outputs, *([y] if restoring else [])]))
        if batch.drift_pictures is not None:
            # Each set repels its own samples only, so each must have the distribution of the
            # pictures.
            sizes = [*map(len, drawn), sum(map(len, outputs))]
            sets = zip(
                *(torch.split(feature[: sum(sizes)], sizes) for feature in features), strict=True
            )
            with torch.no_grad():
                pictures = feature_groups(features_of(batch.drift_pictures))
            *any_drifts, drift = [drifting_loss(feature_groups(each), pictures) for each in sets]
            loss.add("drifting", drift)
            if any_drifts:
                loss.add("project_any", any_drifts[0] + any_drifts[1] / 2)
        if restoring:
            with torch.no_grad():
                target = features_of(batch.x)
            copies = 1 if batch.corrupted is None else 2
            restored = [feature[-copies * len(batch.x) :] for feature in features]
            loss.add(
                "features",
                losses.feature_distance(restored, [torch.cat([each] * copies) for each in target]),
            )


def health(terms: dict[str, float]) -> float | None:
    """The ratio r = L_idem / L_rec; None if idempotence is not active.

    Successful runs end with r between 0.55 and 0.83. If r stays at 1 or above, the samples have
    collapsed or tightness dominates.
    """
    return terms["idem"] / max(terms["rec"], 1e-12) if "idem" in terms else None
