"""Decide what to train: a preset that fits the data, and what the card says of it."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from model_export.data.datasets import Dataset, Source
from model_export.data.inspection import Inspection
from model_export.errors import UserError
from model_export.training.presets import NO_LICENCE, PRESETS, SMALL, Preset, get_preset, with_overrides

_MIN_SIDE: Final = 8
_LARGEST: Final = 1024  # that `--size` allows
_MAX_SIDE: Final = 64  # larger pictures are reduced to it unless --size says otherwise
_FEW: Final = 1000  # pictures; with fewer, a network of this kind learns them by heart
_COLOUR_CORRUPTIONS: Final = ("grey", "sketch")
_LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R 601, as in `datasets`


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the command line says about the training; None: nothing."""

    preset: str | None = None
    name: str | None = None
    size: int | None = None
    channels: int | None = None
    steps: int | None = None
    batch: int | None = None
    corruptions: Sequence[str] | None = None
    eight_bit: float | None = None
    licence: str | None = None


def choose_preset(choices: Choices, source: Source, found: Inspection) -> Preset:
    """The preset of the command line, or one that fits the pictures.

    Without `--preset`, the published sets get the preset of their name and all other pictures `small`, with their own
    channels and a size of at most 64. In colour, `small` also learns to undo grey and sketch.
    """
    if choices.size is not None and not _MIN_SIDE <= choices.size <= _LARGEST:
        raise UserError(f"--size {choices.size}: {_MIN_SIDE} to {_LARGEST}")
    preset = get_preset(choices.preset or (source.known if source.known in PRESETS else SMALL))
    size, channels, corruptions = choices.size, choices.channels, choices.corruptions
    if preset.name == SMALL:
        size, channels = size or _size_for(source.name, found), channels or found.channels
        if not corruptions and channels == found.channels == 3:
            corruptions = (*preset.corruptions, *_COLOUR_CORRUPTIONS)
    elif channels is None and found.channels != preset.network.channels:
        wanted = f"{preset.network.size}×{preset.network.size} {_colour(preset.network.channels)}"
        raise UserError(
            f"--preset {preset.name} is for {wanted} pictures, {source.name} has {found}; add --size "
            f"{size or _size_for(source.name, found)} --channels {found.channels}, or leave out --preset, which then "
            "fits the data"
        )
    return with_overrides(
        preset,
        size=size,
        channels=channels,
        steps=choices.steps,
        batch=choices.batch,
        corruptions=corruptions,
        eight_bit=choices.eight_bit,
    )


def describe_model(preset: Preset, choices: Choices, data: Dataset, found: Inspection) -> Preset:
    """The preset with the name, licence, background and polarity that the card will state.

    Name, description and licence of a preset belong to its own data. For other data the name is that of the folder or
    file, the description is empty and no licence is stated unless the command line says so.
    """
    if preset.data and data.known == preset.data and choices.name in (None, preset.name):
        return dataclasses.replace(preset, licence=choices.licence or preset.licence)
    named_by_data = preset.data or preset.name == SMALL
    return dataclasses.replace(
        preset,
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
        f"{data.name}: {found}: preset `{base}`, --size {network.size} --channels {network.channels}"
        + (" (cropped to the centre square and resized)" if reduced else ""),
        f"model `{preset.name}`: background {levels} of 255, polarity {preset.polarity}, {preset.steps} steps of "
        f"{min(preset.batch, len(data.train))} pictures, licence of the weights: {preset.licence}",
    ]
    if data.skipped:
        lines.append(f"left out {len(data.skipped)} unreadable files: {', '.join(data.skipped)}")
    if len(data.train) < _FEW:
        lines.append(f"only {len(data.train)} training pictures: f may learn them by heart; {_FEW} or more are better")
    return lines


def _size_for(name: str, found: Inspection) -> int:
    side = min(found.smallest)
    if side < _MIN_SIDE:
        raise UserError(f"--data {name}: the smallest picture is {found.smallest}; {_MIN_SIDE} pixels are the least")
    return min(side, _MAX_SIDE)


def _colour(channels: int) -> str:
    return "grey" if channels == 1 else "colour"


def _background(found: Inspection, channels: int) -> tuple[float, ...]:
    levels = found.background
    if channels == 1 and len(levels) == 3:
        levels = (round(sum(weight * level for weight, level in zip(_LUMA, levels, strict=True))),)
    return tuple(round(level / 127.5 - 1.0, 4) for level in levels)


def _name_of(data: str) -> str:
    """A model name made of the name of a file or folder."""
    stem = re.sub(r"\.(npz|zip)$", "", data.lower())
    return re.sub(r"[^a-z0-9_.-]+", "-", stem).strip("-_.")[:64] or "model"
