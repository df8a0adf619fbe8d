"""Presets: every number a training run depends on, as frozen dataclasses that travel inside the checkpoint."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from model_export.errors import UserError
from model_export.training.network import NetworkConfig

Distance = Literal["mse", "l1"]
Degradation = Literal["noise", "blur", "low_resolution", "hole", "grey", "sketch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weight of each term of the loss; 0 switches the term off. `model_export.training.losses` defines the terms.

    Args:
        rec: reconstruction D(f(x), x).
        imle: D(f(z*), x) with z* the candidate whose output is nearest to x.
        match: D(f(z_i), x_σ(i)) with σ an optimal one-to-one assignment.
        distill: D(f(z), T^k(z)) towards a frozen earlier stage T.
        project: D(f(degraded x), x).
        idem: D(f_copy(f(z)), f(z)).
        tight: −D(f(sg f(z)), sg f(z)), clamped.
        settle: D(f(sg f(z)), sg f(z)).
        critic: minus the scores that f(z) has with a critic, which learns beside f.
    """

    rec: float = 1.0
    imle: float = 0.0
    match: float = 0.0
    distill: float = 0.0
    project: float = 0.0
    idem: float = 0.0
    tight: float = 0.0
    settle: float = 0.0
    critic: float = 0.0

    @property
    def latents(self) -> bool:
        """Whether any term needs f of fresh latents."""
        return max(self.distill, self.idem, self.tight, self.settle, self.critic) > 0

    @property
    def teacher(self) -> bool:
        """Whether any term needs a frozen earlier stage."""
        return max(self.distill, self.critic) > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """How noise is paired with pictures.

    Args:
        pool: candidates for IMLE.
        pool_refresh: steps between refreshes of the candidates' outputs.
        pairs: rows of one optimal assignment.
        pairs_refresh: steps between assignments; pairs ≥ pairs_refresh · batch uses every pair at most once.
        epsilon: candidates whose RMS distance to a picture of the batch is below it are rejected (RS-IMLE); 0 = none.
        downsample: match on averages over squares of this side.
    """

    pool: int = 8192
    pool_refresh: int = 16
    pairs: int = 1024
    pairs_refresh: int = 8
    epsilon: float = 0.0
    downsample: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stretch of training with its own weights, optimiser and cosine schedule.

    Args:
        name: shown in the log.
        steps: optimiser steps.
        lr: peak learning rate of Adam, reached after ``warmup`` steps, cosine to 0.
        weights: of the terms.
        teacher_steps: k of T^k, where T is the averaged network at this stage's start.
        warmup: steps of linear warm-up.
        betas: of Adam.
        tight_clamp: a in the paper's a·L_rec·tanh(L_tight/(a·L_rec)), row by row; None for no clamp.
        copy_free: let one pass serve idempotence and tightness where no clamp is set; the gradients are those of the
            paper's frozen copy, for three passes in place of four.
        matching: pools and assignments of this stage; None for the preset's.
        critic_lr: peak learning rate of the critic, which follows the schedule of ``lr``.
    """

    name: str
    steps: int
    lr: float
    weights: Weights
    teacher_steps: int = 0
    warmup: int = 200
    betas: tuple[float, float] = (0.9, 0.99)
    tight_clamp: float | None = None
    copy_free: bool = True
    matching: Matching | None = None
    critic_lr: float = 4e-4

    def __post_init__(self) -> None:
        if self.weights.distill > 0 and self.teacher_steps < 1:
            raise ValueError(f"stage {self.name}: distillation needs teacher_steps ≥ 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One model's training, start to end.

    Args:
        name: also the exported model's name.
        objective: `naign` or `ign`; what the card calls it.
        network: the network.
        stages: in order.
        noise: latents: standard normal, or the data's frequency statistics.
        distance: D of every term.
        batch: pictures per step.
        ema: decay of the averaged weights that are exported.
        matching: pools and assignments of the stages without their own.
        noise_range: projection adds s·n with s uniform in this range, in the units of [−1, 1].
        degradations: ways to spoil the pictures of the projection term; each row gets one of them, evenly at random; a
            name that is there twice is twice as likely.
        eight_bit: share of spoiled rows that are cut and rounded to 8 bits, as uploaded pictures are.
        checkpoint_every: steps between checkpoints; a multiple of all refresh intervals, so that a resumed run
            rebuilds pool and pairs from the very weights that made them.
        generate_steps, project_steps: recommended steps in the card.
        background: of one channel, in [−1, 1].
        polarity: as in the card.
        licence: of the weights.
        description: for people.
    """

    name: str
    objective: Literal["naign", "ign"]
    network: NetworkConfig
    stages: tuple[Stage, ...]
    noise: Literal["gaussian", "frequency"] = "gaussian"
    distance: Distance = "mse"
    batch: int = 128
    ema: float = 0.999
    matching: Matching = field(default_factory=Matching)
    noise_range: tuple[float, float] = (0.0, 1.2)
    degradations: tuple[Degradation, ...] = ("noise",)
    eight_bit: float = 0.0
    checkpoint_every: int = 400
    generate_steps: int = 1
    project_steps: int = 1
    background: float = -1.0
    polarity: Literal["light-on-dark", "dark-on-light", "none"] = "none"
    licence: str = "Apache-2.0"
    description: str = ""

    def __post_init__(self) -> None:
        for matching in map(self.matching_of, self.stages):
            if self.checkpoint_every % math.lcm(matching.pool_refresh, matching.pairs_refresh):
                raise ValueError("checkpoint_every must be a multiple of all refresh intervals")
        if not self.degradations or not set(self.degradations) <= set(get_args(Degradation)):
            raise ValueError(f"degradations are one or more of {', '.join(get_args(Degradation))}")
        if not 0.0 <= self.eight_bit <= 1.0:
            raise ValueError(f"the 8-bit share {self.eight_bit} is not between 0 and 1")

    def matching_of(self, stage: Stage) -> Matching:
        """Pools and assignments of a stage."""
        return stage.matching or self.matching

    @property
    def steps(self) -> int:
        """Optimiser steps over all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one row."""
        return (self.network.channels, self.network.size, self.network.size)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preset":
        """The inverse of :meth:`to_dict`; fields that an older program did not write have their defaults."""
        stages = tuple(_stage(stage) for stage in values["stages"])
        network = NetworkConfig(**{**values["network"], "widths": tuple(values["network"]["widths"])})
        return cls(
            **{
                **values,
                "stages": stages,
                "network": network,
                "matching": Matching(**values["matching"]),
                "noise_range": tuple(values["noise_range"]),
                "degradations": tuple(values.get("degradations", ("noise",))),
            }
        )


def _stage(values: dict[str, Any]) -> Stage:
    own = values.get("matching")
    return Stage(
        **{
            **values,
            "weights": Weights(**values["weights"]),
            "betas": tuple(values["betas"]),
            "matching": None if own is None else Matching(**own),
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def naign_stages(imle: int, balance: int, distill: int, *, teacher_steps: int = 4) -> tuple[Stage, ...]:
    """The recommended objective (NAIGN, arXiv 2511.02614, and what measurements added to it; see docs/training.md).

    1. Reconstruction and IMLE: every picture pulls its nearest sample, so no mode is dropped.
    2. The same with balanced matching: every latent gets a target and no picture is favoured.
    3. Distillation from the frozen second stage, T^k in one step; a critic that sees through T's encoder, for the
       variety that averages over neighbours have lost; and projection from degraded pictures.
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


def ign_stages(steps: int, weights: Weights, *, lr: float, clamp: float | None, warmup: int = 0) -> tuple[Stage, ...]:
    """The paper's adversarial objective (Shocher et al., 2024, section 2 and appendix)."""
    return (
        Stage(
            name="ign",
            steps=steps,
            lr=lr,
            weights=weights,
            warmup=warmup,
            betas=(0.5, 0.999),
            tight_clamp=clamp,
        ),
    )


_DIGITS = NetworkConfig(size=28, channels=1, widths=(32, 64, 128), bottleneck=256)
_DIGITS_MATCHING = Matching(pool_refresh=32)
_DIGITS_DEGRADATIONS: tuple[Degradation, ...] = ("noise", "noise", "noise", "blur", "low_resolution", "hole")
_PAPER_64 = NetworkConfig(
    size=64, channels=3, widths=(64, 128, 256, 512), bottleneck=512, groups=32, activation="dcgan"
)

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="mnist",
            objective="naign",
            network=_DIGITS,
            stages=naign_stages(4000, 3000, 2880),
            matching=_DIGITS_MATCHING,
            degradations=_DIGITS_DEGRADATIONS,
            eight_bit=0.5,
            checkpoint_every=480,
            polarity="light-on-dark",
            description="Handwritten digits, 28×28 grey, light on dark.",
        ),
        Preset(
            name="fashion_mnist",
            objective="naign",
            network=_DIGITS,
            stages=naign_stages(4000, 3000, 2880),
            matching=_DIGITS_MATCHING,
            degradations=_DIGITS_DEGRADATIONS,
            eight_bit=0.5,
            checkpoint_every=480,
            polarity="light-on-dark",
            description="Clothes, 28×28 grey, light on dark.",
        ),
        Preset(
            name="celeba64",
            objective="ign",
            network=_PAPER_64,
            stages=ign_stages(150_000, Weights(rec=20.0, idem=20.0, tight=2.5), lr=1e-4, clamp=1.5),
            noise="frequency",
            distance="l1",
            batch=256,
            licence="research-only",
            description="Aligned celebrity faces, 64×64 RGB, the paper's objective and settings with group norm.",
        ),
        Preset(
            name="tiny",
            objective="naign",
            network=NetworkConfig(size=8, channels=1, widths=(8, 16), bottleneck=16, groups=4),
            stages=naign_stages(24, 16, 16, teacher_steps=2),
            batch=16,
            matching=Matching(pool=64, pool_refresh=4, pairs=32, pairs_refresh=2),
            checkpoint_every=8,
            description="8×8, for tests: trains in seconds.",
        ),
    )
}


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: there is none; the text lists those that exist.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise UserError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}") from None


def adapt(
    preset: Preset,
    *,
    name: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    steps: int | None = None,
    batch: int | None = None,
    degradations: Sequence[str] | None = None,
    eight_bit: float | None = None,
) -> Preset:
    """A preset for other data: another name, picture size, channel count, batch, number of steps, or degradations.

    ``steps`` is shared out over the stages in the preset's proportions, rounded (each keeps at least one); shorter
    stages warm up for shorter, too. A model of another name has no description until export is given one.

    Raises:
        UserError: a value the network or the schedule can't take.
    """
    network = dataclasses.replace(
        preset.network, size=size or preset.network.size, channels=channels or preset.network.channels
    )
    stages = preset.stages
    if steps is not None:
        share = steps / preset.steps
        stages = tuple(
            dataclasses.replace(s, steps=max(1, round(s.steps * share)), warmup=round(s.warmup * min(1.0, share)))
            for s in stages
        )
    if (batch is not None and batch < 1) or (steps is not None and steps < 1) or network.channels not in (1, 3):
        raise UserError("--steps and --batch must be at least 1, --channels 1 or 3")
    try:
        network.sizes()
        return dataclasses.replace(
            preset,
            name=name or preset.name,
            description=preset.description if name in (None, preset.name) else "",
            network=network,
            stages=stages,
            batch=batch or preset.batch,
            degradations=cast("tuple[Degradation, ...]", tuple(degradations or preset.degradations)),
            eight_bit=preset.eight_bit if eight_bit is None else eight_bit,
        )
    except ValueError as exc:
        raise UserError(str(exc)) from exc
