"""The objective of a stage: which terms are on, and their weighted sum."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_export.training import losses
from model_export.training.batches import Batch
from model_export.training.losses import Function
from model_export.training.presets import Distance, Stage


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objective:
    """The weighted terms of one stage.

    Args:
        stage: weights, clamp, and steps of the teacher.
        kind: of the distance.
        teacher: the frozen earlier stage, where the stage distills.
        scores: of the critic, where there is one: images → one (B,) for every scale.
    """

    stage: Stage
    kind: Distance
    teacher: Function | None = None
    scores: Callable[[Tensor], list[Tensor]] | None = None

    def terms(self, f: Function, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Every active term, unweighted, and reconstruction in any case.

        Args:
            f: the network as it is called, with gradients.
            network: the network as a module, of which the frozen copy is made.
            batch: rows for every active term.
        """
        x, kind = batch.x, self.kind
        # First, and even where its weight is 0: the clamp and the health signal need it.
        rec = losses.reconstruction(f, x, kind)
        terms = {"rec": rec.mean()}
        if batch.nearest is not None:
            terms["imle"] = losses.imle(f, batch.nearest, x, kind)
        if batch.matched is not None and batch.partner is not None:
            terms["match"] = losses.matched(f, batch.matched, batch.partner, kind)
        if batch.z is not None:
            terms |= self._of_samples(f, network, batch.z, rec)
        if batch.degraded is not None:
            terms["project"] = losses.projection(f, batch.degraded, x, kind)
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The scalar to minimise."""
        weights = dataclasses.asdict(self.stage.weights)
        active = [weight * terms[name] for name, weight in weights.items() if weight > 0]
        return sum(active, torch.zeros((), device=terms["rec"].device))

    def _of_samples(self, f: Function, network: nn.Module, z: Tensor, rec: Tensor) -> dict[str, Tensor]:
        """The terms of y = f(z), whichever are on."""
        weights, y = self.stage.weights, f(z)
        terms = self._adversarial(f, network, y, rec)
        if weights.distill > 0 and self.teacher is not None:
            terms["distill"] = losses.distillation(y, self.teacher, z, self.stage.teacher_steps, self.kind)
        if weights.settle > 0:
            terms["settle"] = losses.settled(f, y, self.kind)
        if self.scores is not None:
            terms["critic"] = losses.criticised(self.scores(y))
        return terms

    def _adversarial(self, f: Function, network: nn.Module, y: Tensor, rec: Tensor) -> dict[str, Tensor]:
        """Idempotence and tightness of y = f(z), whichever is on."""
        weights, clamp = self.stage.weights, self.stage.tight_clamp
        if weights.idem > 0 and weights.tight > 0 and clamp is None and self.stage.copy_free:
            both = losses.copy_free(f, y, weights.idem, weights.tight, self.kind)
            return {"idem": -both.detach(), "tight": both}
        terms = {}
        if weights.idem > 0:
            terms["idem"] = losses.idempotence(losses.frozen(network), y, self.kind)
        if weights.tight > 0:
            terms["tight"] = losses.smooth_clamp(losses.tightness(f, y, self.kind), rec, clamp).mean()
        return terms


def health(terms: dict[str, float]) -> float | None:
    """The ratio r = L_idem / L_rec, where idempotence is on.

    Runs that succeed end between 0.55 and 0.83; where it stays at 1 or above, the samples have collapsed or tightness
    has won.
    """
    return terms["idem"] / max(terms["rec"], 1e-12) if "idem" in terms else None
