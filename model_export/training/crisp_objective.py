"""The objective of a `Crisp`: an autoencoder that restores, drifting of codes, then both with
critics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.data.corruptions import round_to_8_bits
from model_export.training import losses
from model_export.training.batches import TrainingBatch
from model_export.training.crisp import Crisp
from model_export.training.critics import Adversary, CriticTrainer, FrechetLoss, size
from model_export.training.drifting import drifting_loss, moments
from model_export.training.losses import Loss
from model_export.training.perceptual import PerceptualNetwork
from model_export.training.stages import Distance, Stage

_CLEAN: Final = 4  # every fourth picture stays as it is, the others are corrupted
# σ on the code of every second row, so that small errors of the code do not show
_NOISE: Final = 0.1
_NOISY: Final = 6  # rows of noise that the gate is shown
_SCALES: Final = (0.7, 1.3)  # of that noise
_SAMPLES: Final = 32  # f(z) that are drawn in a step with critics
_KEPT: Final = 8  # f(z) to which f is applied again
# sides in places, and weights, of the parts of a code that drift
_SQUARES: Final = ((4, 1.0), (2, 1.0), (1, 0.5))
# pictures that are looked at at once; the first of them set the scale of every view
_CHUNK: Final = 512
_LATE: Final = 2 / 3  # of the stage, after which f(z) learns from f(f(z))


def code_drifting(codes: Tensor, pictures: Tensor) -> Tensor:
    """Drifting loss of codes (N, c, side, side) towards those of pictures (M, …): of the whole
    code, and of squares.
    """
    total = drifting_loss([codes.flatten(1)], [pictures.flatten(1)])
    for side, weight in _SQUARES:
        count = -(-codes.shape[-1] // side)
        if count > 1:
            stride = (codes.shape[-1] - side) // (count - 1)
            parts = [
                list(functional.unfold(each, side, stride=stride).unbind(2))
                for each in (codes, pictures)
            ]
            total = total + weight * drifting_loss(*parts)
    return total


def _gradient(value: Tensor, at: Tensor) -> Tensor:
    with torch.autocast(at.device.type, enabled=False):
        return torch.autograd.grad(value, at)[0]


def _leaf(x: Tensor) -> Tensor:
    return x.detach().float().requires_grad_()


class _Rows(NamedTuple):
    """What f makes of the rows of a step that come in as pictures or drawings."""

    codes: Tensor
    drawn: Tensor
    views: list[Tensor]  # of what shall be drawn, for the first rows; drawings have no target
    gradient: Tensor  # at those rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrispObjective:
    """The terms of one stage of a `Crisp`."""

    network: Crisp
    stage: Stage
    kind: Distance
    perceptual: PerceptualNetwork
    trainer: CriticTrainer[Adversary] | None = None  # if the stage has critics

    def loss(self, _: nn.Module, batch: TrainingBatch) -> Loss:
        """Every active term. The parts of `network` are called, not f."""
        loss = Loss(self.stage.weights, self.kind)
        x = batch.x
        corrupted = batch.corrupted
        if corrupted is not None and batch.drift_pictures is None:
            self._restored(loss, batch, corrupted, x[:0])
            return loss
        with torch.no_grad():
            real = self.network.code(x if batch.drift_pictures is None else batch.drift_pictures)[0]
        invented = self.network.invented(batch.normal(len(real), *self.network.numbers))
        if corrupted is None or self.trainer is None:
            loss.add("code_drifting", code_drifting(invented, real))
            return loss
        samples = self.network.draw(invented[:_SAMPLES])
        rows = self._restored(loss, batch, corrupted, round_to_8_bits(samples[:_KEPT].detach()))
        self._judge(loss, self.trainer, batch, rows, samples, invented, real)
        if batch.progress > _LATE:
            settled = rows.drawn[len(x) :][:_KEPT].detach()
            loss.compare("second", samples[:_KEPT], settled)
        return loss

    def _restored(self, loss: Loss, batch: TrainingBatch, corrupted: Tensor, kept: Tensor) -> _Rows:
        """Of pictures, corrupted ones, f(z) as pictures to keep, pens, and other drawings."""
        weights = self.stage.weights
        x = batch.x
        clean = len(batch.x) // _CLEAN
        drawings = x[:0] if batch.drawings is None else batch.drawings
        rows = torch.cat([x[:clean], corrupted[clean:], kept, batch.drawn, drawings])
        codes, gate = self.network.code(rows)
        noise = _NOISE * batch.normal(*codes.shape)
        noise[::2] = 0.0
        target = torch.cat([x, kept])
        last = len(target)
        drawn = self.network.draw((codes + noise)[: last if self.trainer is None else None])
        loss.add_of_pictures(drawn[:last], target)
        leaf = _leaf(drawn[:last])
        with torch.no_grad():
            views = views_of(self.perceptual, target)
        error = losses.distance(leaf, target, self.kind).mean()
        features = losses.feature_distance(
            _features(views_of(self.perceptual, leaf)), _features(views)
        )
        gradient = _gradient(weights.project * error + weights.features * features, leaf)
        loss.pull(drawn[:last], gradient)
        loss.terms |= {"project": error.detach(), "features": features.detach()}
        scales = torch.linspace(*_SCALES, _NOISY, device=x.device)[:, None, None, None]
        told = self.network.code(scales * batch.normal(_NOISY, *x.shape[1:]))[1]
        loss.add("gate", functional.softplus(gate).mean() + functional.softplus(-told).mean())
        if len(batch.drawn):
            fitting = self._fitting(codes[last:][: len(batch.drawn)], batch.fitting)
            loss.add("fitting", fitting)
        return _Rows(codes=codes, drawn=drawn, views=views, gradient=gradient)

    def _fitting(self, codes: Tensor, pictures: Tensor) -> Tensor:
        """How far codes of drawings are from those of the nearest of the pictures (B, K, C, H, W)
        that fit each.
        """
        with torch.no_grad():
            known = self.network.code(pictures.flatten(0, 1))[0].view(
                *pictures.shape[:2], *codes.shape[1:]
            )
        distances: Tensor = (known - codes[:, None]).square().mean((2, 3, 4))
        return distances.amin(1).mean()

    def _judge(
        self,
        loss: Loss,
        trainer: CriticTrainer[Adversary],
        batch: TrainingBatch,
        rows: _Rows,
        samples: Tensor,
        invented: Tensor,
        real: Tensor,
    ) -> None:
        """What critics say of f(z), of restored pictures and of drawings, and the drifting of their
        codes.
        """
        weights = self.stage.weights
        adversary = trainer.critics
        clean = len(batch.x) // _CLEAN
        count = len(batch.x)
        chosen = [*range(clean, count, 2), *range(count + _KEPT, len(rows.drawn))]
        fakes = torch.cat([samples, rows.drawn[chosen]])
        codes = torch.cat([invented[:_SAMPLES], rows.codes[chosen]])
        leaf = _leaf(fakes)
        code = _leaf(codes)
        known, noisy = (
            (each + _NOISE * batch.normal(*each.shape)).flatten(1) for each in (real, code)
        )
        views = [*views_of(self.perceptual, leaf), noisy]
        trainer.step(
            [*(view[:count] for view in rows.views), known], [view.detach() for view in views]
        )
        scores = adversary(views)
        seen = losses.generator_loss([*scores[:-1], scores[0]])
        coded = losses.generator_loss(scores[-1:])
        with torch.autocast(leaf.device.type, enabled=False):
            distance = adversary.distance(summaries([view[: len(samples)] for view in views[:-1]]))
        pull = _gradient(seen + weights.frechet * distance, leaf)
        code_pull = _gradient(coded, code)
        factor = weights.critic * adversary.balance(rows.gradient, pull)
        code_factor = weights.code_critic * factor
        drifts = []
        strength = weights.code_drifting * code_factor * size(code_pull)
        sketches = rows.codes[clean:count][batch.sketched[clean:]]
        for part in (
            invented,
            sketches,
            *rows.codes[count + _KEPT :].tensor_split([len(batch.drawn)]),
        ):
            if len(part) > 1:
                own = _leaf(part)
                drift = code_drifting(own, real)
                gradient = _gradient(drift, own)
                loss.pull(part, strength / size(gradient) * gradient)
                drifts.append(drift.detach())
        loss.pull(fakes, factor * pull)
        loss.pull(codes, code_factor * code_pull)
        loss.terms |= {
            "critic": seen.detach(),
            "code_critic": coded.detach(),
            "frechet": distance.detach(),
            "code_drifting": torch.stack(drifts).sum(),
        }


def views_of(perceptual: PerceptualNetwork, x: Tensor) -> list[Tensor]:
    """What critics see of pictures: pixels, the maps of the perceptual network, the last one whole,
    and its vector.
    """
    pixels, *maps = perceptual.features(x, pixels=True)
    return [pixels, *maps, maps[-1].flatten(1), perceptual.hidden(maps[-1])]


def _features(views: Sequence[Tensor]) -> list[Tensor]:
    """Of all views, those in which restored pictures are compared."""
    return [*views[1:-2], views[-1]]


def summaries(views: Sequence[Tensor]) -> list[Tensor]:
    """The vectors whose distribution Fréchet distances compare: the perceptual one, and moments of
    all maps.
    """
    *maps, vector = _features(views)
    return [vector.float(), torch.cat([moments(each.float()) for each in maps], 1)]


@torch.no_grad()
def new_adversary(
    network: Crisp, perceptual: PerceptualNetwork, pictures: Tensor, generator: torch.Generator
) -> Adversary:
    """Critics that have learned nothing, and Fréchet losses that begin with the samples of the
    network.
    """
    chunks = torch.split(pictures, _CHUNK)
    numbers = [
        torch.randn((len(x), *network.numbers), generator=generator, device=x.device)
        for x in chunks
    ]
    views = [views_of(perceptual, x) for x in chunks]
    sampled = [views_of(perceptual, network.draw(network.invented(each))) for each in numbers]
    moments_of = [
        [torch.cat(parts) for parts in zip(*map(summaries, each), strict=True)]
        for each in (views, sampled)
    ]
    frechet = [FrechetLoss(*pair) for pair in zip(*moments_of, strict=True)]
    return Adversary([*views[0], network.code(chunks[0])[0].flatten(1)], frechet)
