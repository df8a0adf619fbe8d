"""Presets: all parameters of a training run, as frozen dataclasses that the checkpoint stores."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast, get_args

from model_export.data.corruptions import CorruptionName
from model_export.errors import UserError
from model_export.training.network import NetworkConfig
from model_export.training.stages import (
    Distance,
    Matching,
    Stage,
    Weights,
    details_stage,
    drifting_stage,
    drifting_stages,
    edges_stage,
    quantised_stage,
    samples_stage,
    texture_stage,
)

NO_LICENCE: Final = "not stated"
SMALL: Final = "small"  # the preset for data without one of its own
_RENAMED = {"degradations": "corruptions"}  # fields of `Preset` in older checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The training of one model."""

    name: str
    objective: Literal["naign", "ign"]  # `naign` or `ign`; the card states it
    network: NetworkConfig  # architecture of f
    stages: tuple[Stage, ...]  # in order
    # Distribution of the latents: standard normal, or with the frequency statistics of the data.
    noise: Literal["gaussian", "frequency"] = "gaussian"
    distance: Distance = "mse"  # D of every term, in the stages that set none
    batch: int = 128  # pictures per step
    ema: float = 0.999  # decay of the averaged weights, which are exported
    matching: Matching = field(default_factory=Matching)  # pool and pairs of the stages that set none
    # Σ of the `noise` corruption is uniform in this range, in the units of [−1, 1].
    noise_range: tuple[float, float] = (0.0, 1.2)
    # Of the projection term. Each row gets one of them, equally likely; a name that is listed twice is twice as likely.
    corruptions: tuple[CorruptionName, ...] = ("noise",)
    eight_bit: float = 0.0  # share of corrupted rows that are rounded to 8 bits, like uploaded pictures
    # Steps between checkpoints. It is a multiple of all refresh intervals, so that a resumed run rebuilds pool and
    # pairs from the same weights that built them.
    checkpoint_every: int = 400
    generate_steps: int = 1  # recommended steps in the card
    project_steps: int = 1
    # One value for each channel, in [−1, 1]; a single one is that of every channel.
    background: tuple[float, ...] = (-1.0,)
    polarity: Literal["light-on-dark", "dark-on-light", "none"] = "none"
    data: str = ""  # the published set (`model_export.data.known_sets`) that name, description and licence belong to
    licence: str = NO_LICENCE
    description: str = ""  # one or two sentences for the card

    def __post_init__(self) -> None:
        for matching in map(self.matching_of, self.stages):
            if self.checkpoint_every % math.lcm(matching.pool_refresh, matching.pairs_refresh):
                raise ValueError("checkpoint_every must be a multiple of all refresh intervals")
        if not self.network.quantizer and any(s.weights.code_consistency or s.quantizer_deviation for s in self.stages):
            raise ValueError("code_consistency and quantizer_deviation need a network with a quantizer")
        if not self.corruptions or not set(self.corruptions) <= set(get_args(CorruptionName)):
            raise ValueError(f"corruptions are one or more of {', '.join(get_args(CorruptionName))}")
        if not 0.0 <= self.eight_bit <= 1.0:
            raise ValueError(f"the 8-bit share {self.eight_bit} is not between 0 and 1")

    def matching_of(self, stage: Stage) -> Matching:
        """Pool and pairs of a stage."""
        return stage.matching or self.matching

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one row."""
        return (self.network.channels, self.network.size, self.network.size)

    def to_dict(self) -> dict[str, Any]:
        """The preset as numbers, strings, lists and dicts."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preset":
        """The inverse of :meth:`to_dict`. Fields that an older version did not write get their defaults."""
        values = {_RENAMED.get(key, key): value for key, value in values.items()}
        stages = tuple(Stage.from_dict(stage) for stage in values["stages"])
        network = NetworkConfig(**{**values["network"], "widths": tuple(values["network"]["widths"])})
        background = values.get("background", -1.0)  # a number in older checkpoints
        return cls(
            **{
                **values,
                "stages": stages,
                "network": network,
                "matching": Matching(**values["matching"]),
                "noise_range": tuple(values["noise_range"]),
                "corruptions": tuple(values.get("corruptions", ("noise",))),
                "background": tuple(background) if isinstance(background, list | tuple) else (background,),
            }
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def naign_stages(imle: int, balance: int, distill: int, *, teacher_steps: int = 4) -> tuple[Stage, ...]:
    """The recommended objective: NAIGN (non-adversarial IGN, Al-Jaff et al., 2025, arXiv 2511.02614) with extensions.

    docs/training-results.md has the measurements behind the extensions. The stages:

    1. Reconstruction and IMLE: every picture attracts its nearest sample, so no mode is dropped.
    2. Balanced matching in addition: every latent gets a target and no picture is preferred.
    3. Distillation from the frozen second stage T: one step of f learns T^k. A discriminator, on features of T's
       encoder, restores the detail that averages over neighbours lack. Projection teaches f to restore corrupted
       pictures.

    Args:
        imle: steps of the first stage.
        balance: steps of the second stage.
        distill: steps of the third stage.
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
    """The adversarial objective of the IGN paper in one stage (Shocher et al., 2024, section 2 and appendix)."""
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


def network_for(size: int, channels: int) -> NetworkConfig:
    """The network of `small`: halvings to a side of 3 to 5, widths doubled from 32 up to 512."""
    widths, side = [32], size // 2
    while side // 2 >= 3:
        widths.append(min(2 * widths[-1], 512))
        side //= 2
    return NetworkConfig(size=size, channels=channels, widths=tuple(widths), bottleneck=256 if size <= 40 else 512)


_DIGITS = NetworkConfig(size=28, channels=1, widths=(32, 64, 128), bottleneck=256)
_DIGITS_MATCHING = Matching(pool_refresh=32)
_DIGITS_CORRUPTIONS: tuple[CorruptionName, ...] = ("noise", "noise", "noise", "blur", "low_resolution", "hole")
_FACES = NetworkConfig(size=64, channels=3, widths=(32, 64, 128, 256), bottleneck=64, places=4)
_PAPER_64 = NetworkConfig(
    size=64, channels=3, widths=(64, 128, 256, 512), bottleneck=512, groups=32, activation="dcgan"
)

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="mnist",
            objective="naign",
            network=dataclasses.replace(_DIGITS, quantizer=192),
            stages=(*naign_stages(4000, 3000, 2880), quantised_stage(4800), texture_stage(960, distill=0.5)),
            matching=_DIGITS_MATCHING,
            corruptions=(*_DIGITS_CORRUPTIONS, "hole", "hole"),
            eight_bit=0.5,
            checkpoint_every=480,
            polarity="light-on-dark",
            data="mnist",
            licence="Apache-2.0",
            description="Handwritten digits, 28×28 grey, light on dark.",
        ),
        Preset(
            name="fashion_mnist",
            objective="naign",
            network=dataclasses.replace(_DIGITS, quantizer=192),
            stages=(
                *naign_stages(4000, 3000, 2880),
                drifting_stage(2000),
                quantised_stage(2400, drifting=0.25),
                texture_stage(320),
            ),
            matching=_DIGITS_MATCHING,
            corruptions=(*_DIGITS_CORRUPTIONS, "hole", "hole"),
            eight_bit=0.5,
            checkpoint_every=480,
            polarity="light-on-dark",
            data="fashion_mnist",
            licence="Apache-2.0",
            description="Clothes, 28×28 grey, light on dark.",
        ),
        Preset(
            name="celeba64",
            objective="naign",
            network=_FACES,
            stages=drifting_stages(4000, 4000, 1600),
            distance="mse_l1",
            batch=32,
            corruptions=(*_DIGITS_CORRUPTIONS, "grey", "sketch"),
            eight_bit=0.5,
            data="celeba64",
            licence="research-only",
            description="Aligned celebrity faces, 64×64 RGB.",
        ),
        Preset(
            name="celeba64_paper",
            objective="ign",
            network=_PAPER_64,
            stages=ign_stages(150_000, Weights(rec=20.0, idem=20.0, tight=2.5), lr=1e-4, clamp=1.5),
            noise="frequency",
            distance="l1",
            batch=256,
            data="celeba64",
            licence="research-only",
            description="Aligned celebrity faces, 64×64 RGB, the paper's objective and settings with group norm.",
        ),
        Preset(
            name=SMALL,
            objective="naign",
            network=network_for(32, 3),
            stages=naign_stages(1600, 1200, 1200),
            matching=Matching(pool=2048),
            corruptions=_DIGITS_CORRUPTIONS,
            eight_bit=0.5,
        ),
        Preset(
            name="avatars64",
            objective="naign",
            network=_FACES,
            stages=(
                *drifting_stages(4000, 600, 480, cells=4),
                edges_stage(2000),
                details_stage(2000),
                samples_stage(800),
            ),
            distance="mse_l1",
            batch=32,
            corruptions=("noise", "noise", "blur", "low_resolution", "hole", "hole", "grey", "sketch"),
            eight_bit=0.5,
            background=(0.639, 0.663, 0.953),
            generate_steps=16,
            data="avatars64",
            licence="CC BY 4.0",
            description="Drawn faces, 64×64 RGB. Remix of “Adventurer” by Lisa Wischofsky (CC BY 4.0), drawn with "
            "DiceBear.",
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
    """The preset of this name."""
    try:
        return PRESETS[name]
    except KeyError:
        raise UserError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}") from None


def split_steps(total: int, proportions: Sequence[int]) -> list[int]:
    """Split a number of steps in these proportions, exactly and with at least one step for each."""
    if total < len(proportions):
        raise UserError(f"--steps {total}: the preset has {len(proportions)} stages, so at least {len(proportions)}")
    spare = total - len(proportions)
    exact = [spare * proportion / sum(proportions) for proportion in proportions]
    steps = [1 + int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: int(exact[i]) - exact[i])
    for i in by_remainder[: total - sum(steps)]:
        steps[i] += 1
    return steps


def with_overrides(
    preset: Preset,
    *,
    size: int | None = None,
    channels: int | None = None,
    steps: int | None = None,
    batch: int | None = None,
    corruptions: Sequence[str] | None = None,
    eight_bit: float | None = None,
) -> Preset:
    """The preset with some values replaced; None keeps a value.

    ``steps`` is the total. It is split over the stages in the preset's proportions; the warm-up of a shorter stage is
    shorter in proportion. The preset `small` gets a network that fits the size.
    """
    size, channels = size or preset.network.size, channels or preset.network.channels
    if (batch is not None and batch < 1) or channels not in (1, 3):
        raise UserError("--batch must be at least 1, --channels 1 or 3")
    if preset.name == SMALL:
        network = network_for(size, channels)
    else:
        network = dataclasses.replace(preset.network, size=size, channels=channels)
    try:
        network.sizes()
        return dataclasses.replace(
            preset,
            network=network,
            stages=preset.stages if steps is None else _with_steps(preset.stages, steps),
            batch=batch or preset.batch,
            corruptions=cast("tuple[CorruptionName, ...]", tuple(corruptions or preset.corruptions)),
            eight_bit=preset.eight_bit if eight_bit is None else eight_bit,
        )
    except ValueError as exc:
        raise UserError(str(exc)) from exc


def _with_steps(stages: tuple[Stage, ...], steps: int) -> tuple[Stage, ...]:
    share = min(1.0, steps / sum(stage.steps for stage in stages))
    counts = split_steps(steps, [stage.steps for stage in stages])
    return tuple(
        dataclasses.replace(stage, steps=count, warmup=round(stage.warmup * share))
        for stage, count in zip(stages, counts, strict=True)
    )
