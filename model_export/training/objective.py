"""The objective of a stage: the active terms and their weighted sum."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_export.training import losses
from model_export.training.batches import TrainingBatch
from model_export.training.drifting import FeatureGroups, drifting_loss
from model_export.training.losses import Function
from model_export.training.network import Autoencoder
from model_export.training.stages import Distance, Stage


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objective:
    """The weighted terms of one stage."""

    stage: Stage  # weights, clamp and number of teacher steps
    kind: Distance
    teacher: Function | None = None  # the frozen network of an earlier stage, if the stage distills
    # The discriminator, if the stage has one: images (B, C, H, W) → scores (B,) for every scale.
    scores: Callable[[Tensor], list[Tensor]] | None = None
    # Features of the teacher's encoder, if the stage has terms that need them.
    feature_groups: FeatureGroups | None = None

    def terms(self, f: Function, network: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
        """Compute every active term, unweighted; `rec` always.

        Args:
            f: the network as it is called, with gradients; possibly compiled or wrapped.
        """
        x, kind = batch.x, self.kind
        y = f(x)
        # Reconstruction comes first, even with weight 0: the clamp of tightness and `health` need it.
        rec = losses.reconstruction(lambda _: y, x, kind)
        terms = {"rec": rec.mean()}
        if batch.nearest is not None:
            terms["imle"] = losses.imle(f, batch.nearest, x, kind)
        if batch.matched is not None and batch.partner is not None:
            terms["match"] = losses.matched(f, batch.matched, batch.partner, kind)
        outputs = []  # of f for latents and for corrupted pictures
        if batch.z is not None:
            outputs.append(f(batch.z))
            terms |= self._sample_terms(f, network, batch.z, outputs[0], rec)
        if batch.corrupted is not None:
            restored = f(batch.corrupted)
            outputs.append(restored)
            terms["project"] = losses.projection(lambda _: restored, batch.corrupted, x, kind)
        return terms | self._attractor_terms(f, network, batch, y, outputs)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum, a scalar to minimise."""
        weights = dataclasses.asdict(self.stage.weights)
        active = [weight * terms[name] for name, weight in weights.items() if weight > 0]
        return sum(active, torch.zeros((), device=terms["rec"].device))

    def _sample_terms(self, f: Function, network: nn.Module, z: Tensor, y: Tensor, rec: Tensor) -> dict[str, Tensor]:
        """The active terms of y = f(z). All share one forward pass for y."""
        weights = self.stage.weights
        terms = self._adversarial_terms(f, network, y, rec)
        if weights.distill > 0 and self.teacher is not None:
            terms["distill"] = losses.distillation(y, self.teacher, z, self.stage.teacher_steps, self.kind)
        if weights.settle > 0 and weights.code_consistency == 0:  # else `_code_terms` computes it
            terms["settle"] = losses.idempotence_on_outputs(f, y[: len(rec)], self.kind)
        if self.scores is not None:
            terms["critic"] = losses.generator_loss(self.scores(y))
        return terms

    def _attractor_terms(
        self, f: Function, network: nn.Module, batch: TrainingBatch, y: Tensor, outputs: list[Tensor]
    ) -> dict[str, Tensor]:
        """The active terms that make pictures and samples attractors of f; y = f(x), outputs: f(z), f(corrupted x)."""
        terms: dict[str, Tensor] = {}
        if self.feature_groups is not None:
            terms |= self._feature_terms(self.feature_groups, batch, y, outputs)
        if self.stage.weights.code_consistency > 0 and isinstance(network, Autoencoder):
            terms |= self._code_terms(f, network, batch, y, outputs)
        return terms

    def _feature_terms(
        self, groups: FeatureGroups, batch: TrainingBatch, y: Tensor, outputs: list[Tensor]
    ) -> dict[str, Tensor]:
        """The active terms in features of the frozen encoder. All share one pass of it for the outputs of f."""
        restoring = self.stage.weights.features > 0
        if not restoring and batch.drift_pictures is None:
            return {}
        # y comes last, so that the rows next to it are f(corrupted x), if there are any.
        features = groups.features(torch.cat([*outputs, y] if restoring else outputs))
        terms = {}
        if batch.drift_pictures is not None:
            count = sum(map(len, outputs))
            with torch.no_grad():
                pictures = groups(batch.drift_pictures)
            terms["drifting"] = drifting_loss(groups.split([feature[:count] for feature in features]), pictures)
        if restoring:
            copies = 1 if batch.corrupted is None else 2
            with torch.no_grad():
                target = groups.features(batch.x.repeat(copies, 1, 1, 1))
            restored = [feature[-copies * len(batch.x) :] for feature in features]
            terms["features"] = losses.feature_distance(restored, target)
        return terms

    def _code_terms(
        self, f: Function, network: Autoencoder, batch: TrainingBatch, y: Tensor, outputs: list[Tensor]
    ) -> dict[str, Tensor]:
        """Code consistency of f(x) and of half of the samples as pictures, and idempotence on those samples.

        Both terms share the forward pass of the samples. Without `settle`, code consistency uses f(x) only. Latents and
        corrupted pictures have codes of their own, which no picture needs to have.
        """
        terms, source, decoded = {}, batch.x, y
        if self.stage.weights.settle > 0 and outputs:
            fixed = outputs[0][::2].detach()  # f(z): `settle` needs latents
            again = f(fixed)
            terms["settle"] = losses.distance(again, fixed, self.kind).mean()
            source, decoded = torch.cat([source, fixed]), torch.cat([decoded, again])
        if batch.code_noise is not None:
            decoded = decoded + self.stage.code_noise * batch.code_noise[: len(decoded)]
        return {**terms, "code_consistency": losses.code_consistency(network, source, decoded)}

    def _adversarial_terms(self, f: Function, network: nn.Module, y: Tensor, rec: Tensor) -> dict[str, Tensor]:
        """Idempotence and tightness of y = f(z), as far as they are active."""
        weights, clamp = self.stage.weights, self.stage.tight_clamp
        # The clamp scales tightness row by row, so its gradient differs from that of idempotence by more than a factor
        # and the two cannot share a pass.
        if weights.idem > 0 and weights.tight > 0 and clamp is None and self.stage.copy_free:
            fused = losses.fused_idempotence_tightness(f, y, weights.idem, weights.tight, self.kind)
            return {"idem": -fused.detach(), "tight": fused}
        terms = {}
        if weights.idem > 0:
            terms["idem"] = losses.idempotence(losses.frozen(network), y, self.kind)
        if weights.tight > 0:
            terms["tight"] = losses.smooth_clamp(losses.tightness(f, y, self.kind), rec, clamp).mean()
        return terms


def health(terms: dict[str, float]) -> float | None:
    """The ratio r = L_idem / L_rec; None if idempotence is not active.

    Successful runs end with r between 0.55 and 0.83. If r stays at 1 or above, the samples have collapsed or tightness
    dominates.
    """
    return terms["idem"] / max(terms["rec"], 1e-12) if "idem" in terms else None
