"""Presets: all parameters of a training run, as frozen dataclasses that the checkpoint stores; and
which one fits.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, Final, Literal, get_args

from pydantic import ConfigDict, TypeAdapter

from model_export.data.corruptions import CorruptionName
from model_export.data.datasets import Dataset, Source
from model_export.data.picture_files import Inspection
from model_export.errors import UserError
from model_export.training.network import NetworkConfig
from model_export.training.stages import (
    Distance,
    Matching,
    Stage,
    crisp_stages,
    exact_stages,
    ign_stages,
    naign_stages,
    restoring_stages,
)

NO_LICENCE: Final = "not stated"
SMALL: Final = "small"  # the preset for data without one of its own
QUICK: Final = "quick"  # `--quick`
# Options of earlier versions, which the checkpoints of the shipped models state. One value of each
# is left.
_FORMER: Final = (
    "quantizer_deviation",
    "first_scale",
    "perceptual",
    "eight_bit",
    "entropy_any",
    "places",
    "drift_cells",
    "quantizer",
    "residual",
    "code_consistency",
    "settle_any",
    "code_noise",
)
_DIGITS_CORRUPTIONS: tuple[CorruptionName, ...] = (
    "noise",
    "noise",
    "noise",
    "blur",
    "low_resolution",
    "hole",
)
_MIN_SIDE: Final = 8
_LARGEST: Final = 1024  # that `--size` allows
_MAX_SIDE: Final = 64  # larger pictures are reduced to it unless --size says otherwise
_FEW: Final = 1000  # pictures; with fewer, a network of this kind learns them by heart
_LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode `L`


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The training of one model."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # also of its parts

    name: str
    objective: Literal["naign", "ign", "restore"]
    network: NetworkConfig
    stages: tuple[Stage, ...]
    distance: Distance = "mse"  # D of every term, in the stages that set none
    batch: int = 128  # pictures per step
    matching: Matching = field(default_factory=Matching)
    # The term `project` gives each row one of them; a name that is listed twice is twice as likely.
    corruptions: tuple[CorruptionName, ...] = ("noise",)
    drawn_digits: bool = False  # among drawings that are no pictures; not for data of digits
    # Steps between checkpoints. It is a multiple of all refresh intervals, so that a resumed run
    # rebuilds pool and pairs from the same weights that built them.
    checkpoint_every: int = 400
    perceptual_steps: int = 2000  # of `model_export.training.perceptual.fit`, before the first
    generate_steps: int = 1  # recommended steps in the card
    tile: int = 0  # side of the exported rows: a network of any size is exported for tiles
    overlap: int = 0  # of tiles, in pixels
    # pixels by which images are mirrored beyond their edges before they are cut into tiles
    margin: int = 0
    # One value for each channel, in [−1, 1]; a single one is that of every channel.
    background: tuple[float, ...] = (-1.0,)
    polarity: Literal["light-on-dark", "dark-on-light", "none"] = "none"
    # the published set (`model_export.data.known_sets`) that name, description and licence belong
    # to
    data: str = ""
    licence: str = NO_LICENCE
    description: str = ""  # one or two sentences for the card

    def __post_init__(self) -> None:
        if self.checkpoint_every % self.refresh_interval:
            raise ValueError("checkpoint_every must be a multiple of all refresh intervals")
        if bool(self.network.full) != (self.objective == "restore"):
            raise ValueError("the objective `restore` and a network with `full` belong together")
        for stage in self.stages:
            if foreign := stage.weights.foreign(self.network.kind):
                raise ValueError(
                    f"stage {stage.name}: the objective of a {self.network.kind} has no term "
                    f"`{foreign[0]}`"
                )
        if not self.corruptions or not set(self.corruptions) <= set(get_args(CorruptionName)):
            raise ValueError(
                f"corruptions are one or more of {', '.join(get_args(CorruptionName))}"
            )

    @property
    def refresh_interval(self) -> int:
        """Steps after which pool and pairs are both refreshed."""
        return math.lcm(self.matching.pool_refresh, self.matching.pairs_refresh)

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one row."""
        return (self.network.channels, self.network.size, self.network.size)

    @property
    def exported_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a row of the exported model."""
        return (self.network.channels, *(2 * (self.tile,) if self.tile else self.shape[1:]))

    def to_dict(self) -> dict[str, Any]:
        """The preset as numbers, strings, lists and dicts."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preset":
        """The inverse of :meth:`to_dict`. Raises ValueError for one of another version."""
        known = json.loads(json.dumps(values), object_hook=_known)
        return TypeAdapter(cls).validate_python(known)


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """The values without former options."""
    return {name: value for name, value in values.items() if name not in _FORMER}


def network_for(size: int, channels: int) -> NetworkConfig:
    """The network of `small`: halvings to a side of 3 to 5, widths doubled from 32 up to 512."""
    widths = [32]
    side = size // 2
    while side // 2 >= 3:
        widths.append(min(2 * widths[-1], 512))
        side //= 2
    return NetworkConfig(
        size=size, channels=channels, widths=tuple(widths), bottleneck=256 if size <= 40 else 512
    )


_MNIST = Preset(
    name="mnist",
    objective="naign",
    network=NetworkConfig(size=28, channels=1, widths=(32, 64, 128), bottleneck=256, blocks=2),
    stages=(*naign_stages(4000, 3000, 2880), *exact_stages(1400, 700)),
    matching=Matching(pool_refresh=32),
    corruptions=(*_DIGITS_CORRUPTIONS, "hole", "hole"),
    checkpoint_every=480,
    polarity="light-on-dark",
    data="mnist",
    licence="Apache-2.0",
    description="Handwritten digits, 28×28 grey, light on dark.",
)

PRESETS = {
    preset.name: preset
    for preset in (
        _MNIST,
        Preset(
            name="fashion_mnist",
            objective="naign",
            network=NetworkConfig(size=28, channels=1, widths=(64, 128), bottleneck=16, palette=16),
            stages=crisp_stages(7000, 1600, 5500),
            batch=64,
            corruptions=_DIGITS_CORRUPTIONS,
            drawn_digits=True,
            polarity="light-on-dark",
            data="fashion_mnist",
            licence="Apache-2.0",
            description="Clothes, 28×28 grey, light on dark.",
        ),
        Preset(
            name=SMALL,
            objective="naign",
            network=network_for(32, 3),
            stages=naign_stages(1600, 1200, 1200),
            matching=Matching(pool=2048),
            corruptions=_DIGITS_CORRUPTIONS,
        ),
        Preset(
            name=QUICK,
            objective="naign",
            network=NetworkConfig(
                size=32, channels=3, widths=(32, 64, 128), bottleneck=32, palette=16
            ),
            # a quarter of an hour on one core
            stages=tuple(replace(stage, warmup=60) for stage in crisp_stages(1600, 800, 1500)),
            batch=64,
            corruptions=_DIGITS_CORRUPTIONS,
            perceptual_steps=300,
        ),
        # The paper's objective with its weights; its DCGAN had batch norm, which makes rows depend
        # on one another.
        Preset(
            name="ign",
            objective="ign",
            network=NetworkConfig(size=64, channels=3, widths=(64, 128, 256, 512), bottleneck=512),
            stages=ign_stages(150_000, lr=1e-4),
            distance="l1",
            batch=256,
        ),
        Preset(
            name="avatars64",
            objective="naign",
            network=NetworkConfig(
                size=64,
                channels=3,
                widths=(32, 64, 128),
                bottleneck=16,
                palette=16,
                parts=((3, 1, 2, 2), (3, 3, 2, 2), (5, 2, 2, 3)),  # eyes with their brows; mouth
            ),
            stages=crisp_stages(5000, 1200, 4700),
            batch=44,
            corruptions=(
                "noise",
                "noise",
                "blur",
                "low_resolution",
                "hole",
                "hole",
                "grey",
                "sketch",
                "sketch",
            ),
            background=(0.639, 0.663, 0.953),
            data="avatars64",
            licence="CC BY 4.0",
            description="Drawn faces, 64×64 RGB. Remix of “Adventurer” by Lisa Wischofsky (CC BY "
            "4.0), drawn with DiceBear.",
        ),
        # f for pages of any size; see `model_export.data.scans`.
        Preset(
            name="scans",
            objective="restore",
            network=NetworkConfig(
                size=384, channels=1, widths=(16, 32, 64, 96, 96), bottleneck=0, full=8
            ),
            stages=restoring_stages(60_000, 20_000),
            distance="l1_ink",
            batch=2,
            checkpoint_every=1600,  # writing one takes as long as 30 steps
            background=(1.0,),
            tile=1408,
            overlap=96,  # what f sees beyond that changes slowly
            # so f never sees a border: it leaves dark corners, which look like a part of a picture
            margin=64,
            data="scans",
            licence="Apache-2.0",
            description="Scanned and photographed pages of text, grey: removes stains, shadows "
            "and dirt for OCR.",
        ),
        Preset(
            name="tiny",
            objective="naign",
            network=NetworkConfig(size=8, channels=1, widths=(8, 16), bottleneck=16),
            stages=naign_stages(24, 16, 16, teacher_steps=2),
            batch=16,
            matching=Matching(pool=64, pool_refresh=4, pairs=32, pairs_refresh=2),
            checkpoint_every=8,
            perceptual_steps=10,
            description="8×8, for tests: trains in seconds.",
        ),
    )
}


def get_preset(name: str) -> Preset:
    """The preset of this name."""
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def own_data(name: str | None) -> str:
    """The published set of a preset."""
    data = "" if name is None else get_preset(name).data
    if not data:
        raise UserError("--data: name the pictures; a preset such as mnist or scans has its own")
    return data


def split_steps(total: int, proportions: Sequence[int]) -> list[int]:
    """Split a number of steps in these proportions, exactly and with at least one step for each."""
    if total < len(proportions):
        raise UserError(
            f"--steps {total}: the preset has {len(proportions)} stages, so at least "
            f"{len(proportions)}"
        )
    share = (total - len(proportions)) / sum(proportions)
    ends = [round(share * end) for end in accumulate(proportions)]
    return [1 + end - start for start, end in pairwise([0, *ends])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the command line says about the training."""

    preset: str | None = None
    name: str | None = None
    size: int | None = None
    channels: int | None = None
    steps: int | None = None
    batch: int | None = None
    corruptions: Sequence[CorruptionName] | None = None
    licence: str | None = None


def with_overrides(preset: Preset, choices: Choices) -> Preset:
    """The preset with the values of the choices; ``steps``, the total, is split in the preset's
    proportions.

    The warm-up of a shorter stage is shorter in proportion. The preset `small` gets a network that
    fits the size.
    """
    size = choices.size or preset.network.size
    channels = choices.channels or preset.network.channels
    if choices.batch is not None and choices.batch < 1:
        raise UserError("--batch must be at least 1")
    if preset.name == SMALL:
        network = network_for(size, channels)
    else:
        parts = preset.network.parts if size == preset.network.size else ()
        network = replace(preset.network, size=size, channels=channels, parts=parts)
    try:
        network.sizes()
        return replace(
            preset,
            network=network,
            stages=preset.stages
            if choices.steps is None
            else _with_steps(preset.stages, choices.steps),
            batch=choices.batch or preset.batch,
            corruptions=tuple(choices.corruptions or preset.corruptions),
        )
    except ValueError as exc:
        raise UserError(str(exc)) from exc


def _with_steps(stages: tuple[Stage, ...], steps: int) -> tuple[Stage, ...]:
    share = min(1.0, steps / sum(stage.steps for stage in stages))
    counts = split_steps(steps, [stage.steps for stage in stages])
    return tuple(
        replace(stage, steps=count, warmup=round(stage.warmup * share))
        for stage, count in zip(stages, counts, strict=True)
    )


def choose_preset(choices: Choices, source: Source, found: Inspection) -> Preset:
    """The preset of the command line, or one that fits the pictures.

    Without `--preset`, the published sets get the preset of their name and all other pictures
    `small`, with a size of at most 64. `small` and `quick` take the channels of the pictures, and
    in colour learn to undo grey and sketch too.
    """
    if choices.size is not None and not _MIN_SIDE <= choices.size <= _LARGEST:
        raise UserError(f"--size {choices.size}: {_MIN_SIDE} to {_LARGEST}")
    preset = get_preset(choices.preset or (source.known if source.known in PRESETS else SMALL))
    size = choices.size
    channels = choices.channels
    corruptions = choices.corruptions
    if preset.name in (SMALL, QUICK):
        size = size or (_size_for(source.name, found) if preset.name == SMALL else None)
        channels = channels or found.channels
        if not corruptions and channels == found.channels == 3:
            corruptions = (*preset.corruptions, "grey", "sketch")
    elif channels is None and found.channels != preset.network.channels:
        colour = "grey" if preset.network.channels == 1 else "colour"
        wanted = f"{preset.network.size}×{preset.network.size} {colour}"
        raise UserError(
            f"--preset {preset.name} is for {wanted} pictures, {source.name} has {found}; "
            f"add --size {size or _size_for(source.name, found)} --channels "
            f"{found.channels}, or leave out --preset, which then "
            "fits the data"
        )
    chosen = replace(choices, size=size, channels=channels, corruptions=corruptions)
    return with_overrides(preset, chosen)


def describe_model(preset: Preset, choices: Choices, data: Dataset, found: Inspection) -> Preset:
    """The preset with the name, licence, background and polarity that the card will state.

    Name, description and licence of a preset belong to its own data. For other data the name is
    that of the folder or file, the description is empty and no licence is stated unless the command
    line says so.
    """
    own = preset.data and data.known == preset.data
    if own and choices.name in (None, preset.name):
        return replace(preset, licence=choices.licence or preset.licence)
    named_by_data = preset.data or not preset.description
    return replace(
        preset,
        # Other pictures have theirs elsewhere, if any.
        network=preset.network if own else replace(preset.network, parts=()),
        name=choices.name or (_name_of(data.name) if named_by_data else preset.name),
        description="" if named_by_data or choices.name else preset.description,
        licence=choices.licence or NO_LICENCE,
        background=_background(found, preset.network.channels),
        polarity="none" if preset.network.channels == 3 else found.polarity,
    )


def summary(preset: Preset, base: str, data: Dataset, found: Inspection) -> list[str]:
    """What was found and chosen, one line each."""
    network = preset.network
    levels = ", ".join(str(round((value + 1.0) * 127.5)) for value in preset.background)
    reduced = {*found.smallest, *found.largest} != {network.size}
    lines = [
        f"{data.name}: {found}: preset `{base}`, --size {network.size} --channels "
        f"{network.channels}" + (" (cropped to the centre square and resized)" if reduced else ""),
        f"model `{preset.name}`: background {levels} of 255, polarity {preset.polarity}, "
        f"{preset.steps} steps of {min(preset.batch, len(data.train))} pictures, licence of "
        f"the weights: {preset.licence}",
    ]
    if data.skipped:
        lines.append(f"left out {len(data.skipped)} unreadable files: {', '.join(data.skipped)}")
    if len(data.train) < _FEW:
        lines.append(
            f"only {len(data.train)} training pictures: f may learn them by heart; {_FEW} or "
            f"more are better"
        )
    return lines


def _size_for(name: str, found: Inspection) -> int:
    side = min(found.smallest)
    if side < _MIN_SIDE:
        raise UserError(
            f"--data {name}: the smallest picture is {found.smallest}; {_MIN_SIDE} pixels "
            f"are the least"
        )
    return min(side, _MAX_SIDE)


def _background(found: Inspection, channels: int) -> tuple[float, ...]:
    levels = found.background
    if channels == 1 and len(levels) == 3:
        levels = (round(sum(weight * level for weight, level in zip(_LUMA, levels, strict=True))),)
    return tuple(round(level / 127.5 - 1.0, 4) for level in levels)


def _name_of(data: str) -> str:
    stem = re.sub(r"\.(npz|zip)$", "", data.lower())
    return re.sub(r"[^a-z0-9_.-]+", "-", stem).strip("-_.")[:64] or "model"
