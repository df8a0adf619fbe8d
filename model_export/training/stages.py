"""The stages of a training run: weights of the terms, optimiser and schedule, as frozen
dataclasses.
"""

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, replace
from typing import Final, Literal

Distance = Literal["mse", "l1", "mse_l1", "mse_edges", "l1_ink"]
"""D of the loss terms; see `model_export.training.losses.distance`."""


Need = Literal["latents", "pairs", "features", "attraction"]
"""What the batches of a stage hold for a term: fresh latents; pairs of pictures and latents;
features of `model_export.training.perceptual`; pictures that attract samples.
"""


def _weight(networks: str, *needs: Need, default: float = 0.0) -> float:
    """The weight of a term that the objectives of these kinds of network have, and what it
    needs.
    """
    metadata = {"networks": networks.split(), "needs": needs}
    return field(default=default, metadata=metadata)


_EVERY: Final = "autoencoder crisp restorer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weight of each term of the loss, by its name in log and checkpoint; 0 switches the term
    off.
    """

    # reconstruction D(f(x), x)
    rec: float = _weight("autoencoder", default=1.0)
    # D(f(z*), x) with z* the candidate whose output is nearest to x
    imle: float = _weight("autoencoder", "pairs")
    # D(f(z_i), x_σ(i)) with σ an optimal one-to-one assignment
    match: float = _weight("autoencoder", "pairs")
    # D(f(z), T^k(z)) towards a frozen earlier stage T
    distill: float = _weight("autoencoder", "latents")
    # D(f(corrupted x), x)
    project: float = _weight(_EVERY)
    # D(f_copy(f(z)), f(z))
    idem: float = _weight("autoencoder", "latents")
    # −D(f(sg f(z)), sg f(z)), clamped
    tight: float = _weight("autoencoder", "latents")
    # D(f(sg f(z)), sg f(z)), idempotence on outputs
    settle: float = _weight("autoencoder", "latents")
    # Minus the scores of f(z) by a discriminator, which is trained alternately with f. Of a
    # `Crisp`, the size of its gradient in pixels relative to that of `project` and `features`.
    critic: float = _weight("autoencoder crisp", "latents")
    # drifting loss of f(z) and f(corrupted x), towards the distribution of pictures
    drifting: float = _weight("autoencoder", "latents", "features", "attraction")
    # distance of f(x) and f(corrupted x) from x in perceptual features
    features: float = _weight("autoencoder crisp", "features")
    # Drifting loss of f(u), as a set of its own, and of f(sg f(u)); u are drawings that are no
    # pictures.
    project_any: float = _weight("autoencoder", "features", "attraction")
    # noise is told from pictures, corrupted pictures and drawings
    gate: float = _weight("crisp")
    # Drifting loss of invented codes. With `critic`, that of each set of codes by itself, with a
    # gradient of this share of that of `code_critic`.
    code_drifting: float = _weight("crisp", "attraction")
    # minus the score of codes, relative to `critic`
    code_critic: float = _weight("crisp")
    # Fréchet distance of f(z) in perceptual features, relative to `critic`
    frechet: float = _weight("crisp")
    # distance of the codes of pens to those of the nearest picture that fits
    fitting: float = _weight("crisp")
    # D(f(z), sg f(f(z))), in the last third of the stage
    second: float = _weight("crisp")
    # share that f(x), of a restorer f(corrupted x), lacks of each connected part of the ink
    marks: float = _weight(_EVERY)
    # the left of f(corrupted x) stays, and the right becomes x, when f is applied again
    again: float = _weight("restorer")

    def need(self, what: Need) -> bool:
        """Whether any active term needs this."""
        return any(what in term.metadata["needs"] for term in self._active())

    def foreign(self, network: str) -> list[str]:
        """The active terms that the objective of this kind of network lacks."""
        return [term.name for term in self._active() if network not in term.metadata["networks"]]

    def _active(self) -> Iterator[Field[float]]:
        return (term for term in fields(self) if getattr(self, term.name) > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """How latents are paired with pictures."""

    pool: int = 8192  # number of candidate latents for IMLE
    pool_refresh: int = 16  # steps between refreshes of the candidates
    pairs: int = 1024  # number of pairs of one optimal assignment
    # steps between assignments; pairs ≥ pairs_refresh · batch uses every pair at most once
    pairs_refresh: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the training with its own weights, optimiser and cosine schedule."""

    name: str  # shown in the log
    steps: int  # optimiser steps
    lr: float  # peak learning rate of Adam, reached after ``warmup`` steps, cosine to 0
    weights: Weights
    teacher_steps: int = 0  # k of T^k, where T is the averaged network at the start of this stage
    warmup: int = 200  # steps of linear warm-up
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float | None = None  # the largest norm of the gradient
    # a in the paper's a·L_rec·tanh(L_tight/(a·L_rec)), row by row; None for no clamp
    tight_clamp: float | None = None
    distance: Distance | None = None  # D of every term of this stage; None takes the preset's
    # Number of latents and of pictures per step of `drifting`, which estimates its field from them;
    # 0 takes the batch size. `settle` then takes as many of the samples as there are pictures in
    # the batch.
    drift_pictures: int = 0
    # whether pixels, with a larger weight of fine detail, are features too
    perceptual_pixels: bool = False
    # Steps of `Blocks.fit` when the stage starts, after the teacher is copied; 0 keeps the blocks
    # as they are.
    fit_blocks: int = 0

    def __post_init__(self) -> None:
        if self.perceptual_pixels and not self.weights.need("features"):
            raise ValueError(f"stage {self.name}: no term has perceptual features")
        if self.weights.distill > 0 and self.teacher_steps < 1:
            raise ValueError(f"stage {self.name}: distillation needs teacher_steps ≥ 1")

    @property
    def teacher(self) -> bool:
        """Whether any active term needs the frozen network of an earlier stage."""
        return max(self.weights.distill, self.weights.critic) > 0


def naign_stages(
    imle: int, balance: int, distill: int, *, teacher_steps: int = 4
) -> tuple[Stage, ...]:
    """The recommended objective: NAIGN (non-adversarial IGN, Al-Jaff et al., 2025, arXiv
    2511.02614) with extensions.

    docs/training-results.md has the measurements behind the extensions. The stages:

    1. Reconstruction and IMLE: every picture attracts its nearest sample, so no mode is dropped.
    2. Balanced matching in addition: every latent gets a target and no picture is preferred.
    3. Distillation from the frozen second stage T: one step of f learns T^k. A discriminator, on
       features of T's encoder, restores the detail that averages over neighbours lack. Projection
       teaches f to restore corrupted pictures.

    ``imle``, ``balance`` and ``distill`` are their steps, ``teacher_steps`` is k.
    """
    return (
        Stage(name="imle", steps=imle, lr=6e-4, weights=Weights(imle=1.0)),
        Stage(name="balance", steps=balance, lr=4e-4, weights=Weights(imle=1.0, match=0.3)),
        Stage(
            name="distill",
            steps=distill,
            lr=5e-4,
            weights=Weights(distill=0.4, project=0.5, settle=0.5, critic=0.01),
            teacher_steps=teacher_steps,
            betas=(0.5, 0.99),
        ),
    )


def ign_stages(steps: int, lr: float) -> tuple[Stage, ...]:
    """The adversarial objective of the IGN paper in one stage, with its weights (Shocher et al.,
    2024, section 2 and appendix).
    """
    return (
        Stage(
            name="ign",
            steps=steps,
            lr=lr,
            weights=Weights(rec=20.0, idem=20.0, tight=2.5),
            warmup=0,
            betas=(0.5, 0.999),
            tight_clamp=1.5,
        ),
    )


def restoring_stages(restore: int, settle: int) -> tuple[Stage, Stage]:
    """The stages of a `Restorer`. The data have pairs, of which some are equal, so `rec` is not
    needed.
    """
    stage = Stage(
        name="restore",
        steps=restore,
        lr=1e-3,
        clip=0.5,
        weights=Weights(rec=0.0, project=1.0, marks=0.06),
    )
    weights = replace(stage.weights, again=0.5)
    return stage, replace(stage, name="settle", steps=settle, lr=5e-4, weights=weights)


def exact_stages(project: int, exact: int) -> tuple[Stage, Stage]:
    """Stages after `naign_stages` that make f a projector, then exact by `Blocks`.

    Perceptual features tell letters from digits, which the encoder of f hardly does, but hardly see
    specks; f⁴ of the network before has none, so `distill` keeps f(z) free of them. `settle` of an
    exact f is 0. Its pictures are drawn anew, so pixels count too. The arguments are steps.
    """
    weights = Weights(
        rec=1.5, distill=0.5, project=1.0, settle=1.0, features=1.0, drifting=0.5, project_any=0.7
    )
    projector = Stage(
        name="projector",
        steps=project,
        lr=6e-4,
        warmup=50,
        distance="mse_l1",
        weights=weights,
        teacher_steps=4,
        drift_pictures=192,
    )
    weights = replace(weights, rec=2.0, distill=1.5, settle=0.0, drifting=0.7, project_any=1.0)
    last = replace(projector, name="exact", steps=exact, lr=4e-4, weights=weights)
    return projector, replace(last, perceptual_pixels=True, fit_blocks=2000)


def crisp_stages(autoencoder: int, drifting: int, joint: int) -> tuple[Stage, Stage, Stage]:
    """The stages of a `Crisp`. The arguments are steps.

    An autoencoder that restores comes first. Then codes of noise drift to those of pictures, by
    hundreds, with nothing drawn. At last both learn together, with critics of what is drawn.
    """
    first = Stage(
        name="autoencoder",
        steps=autoencoder,
        lr=1.5e-3,
        distance="mse_edges",
        weights=Weights(rec=0.0, project=1.0, features=0.5, gate=0.05, fitting=0.3),
    )
    drift = replace(
        first,
        name="code drifting",
        steps=drifting,
        lr=1e-3,
        weights=Weights(rec=0.0, code_drifting=1.0),
    )
    weights = replace(
        first.weights, critic=0.2, code_critic=2.0, frechet=0.05, code_drifting=1.0, second=0.1
    )
    last = replace(first, name="joint", steps=joint, lr=4e-4, betas=(0.5, 0.99), weights=weights)
    return first, replace(drift, drift_pictures=256), replace(last, drift_pictures=128)
