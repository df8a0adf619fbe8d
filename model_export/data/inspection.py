"""Look at pictures before training: how many, how large, in colour or grey, on which background."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from model_export.errors import UserError
from service.artifact.pixels import MID_GREY

Picture = NDArray[np.uint8]
Polarity = Literal["light-on-dark", "dark-on-light", "none"]

_SAMPLE: Final = 256  # pictures that are looked at, evenly spread over the data
_COLOUR: Final = 4.0  # levels between the largest and the smallest channel, mean over a picture
_COLOURED: Final = 0.05  # share of pictures in colour from which the data counts as coloured
_NEAR: Final = 24  # levels from the border's median within which a border pixel belongs to the background
_PLAIN: Final = 0.8  # share of such pixels from which a background is plain
_AGREE: Final = 0.95  # share of pictures with a dark (light) border from which the data has a dark (light) background


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What the pictures of a data set are like. All but the number is found in a sample."""

    count: int  # number of pictures
    smallest: tuple[int, int]  # (width, height) of the pictures with the shortest and with the longest side
    largest: tuple[int, int]
    channels: Literal[1, 3]  # 1 if the pictures are grey, else 3
    background: tuple[int, ...]  # median level of the outermost pixels, for every channel
    # `dark`, `light` or `plain` (neither, or both) if most pictures have a border of one colour; else `mixed`.
    ground: Literal["dark", "light", "plain", "mixed"]

    @property
    def polarity(self) -> Polarity:
        """Of the card. `none` unless the pictures are grey and have a dark or a light background."""
        if self.channels == 3 or self.ground not in ("dark", "light"):
            return "none"
        return "light-on-dark" if self.ground == "dark" else "dark-on-light"

    def __str__(self) -> str:
        sizes = [f"{width}×{height}" for width, height in dict.fromkeys((self.smallest, self.largest))]
        colour = "grey" if self.channels == 1 else "colour"
        return f"{self.count} pictures, {' to '.join(sizes)}, {colour}, {self.ground} background"


def inspect_pictures(
    name: str, count: int, picture: Callable[[int], Picture | None], available: int | None = None
) -> Inspection:
    """Look at a sample of pictures.

    Args:
        picture: index → (H, W) or (H, W, C) uint8, or None if the picture is not readable.
        available: number of indices; ``count`` when not given.
    """
    available = count if available is None else available
    indices = np.unique(np.linspace(0, available - 1, min(_SAMPLE, available)).astype(int))
    pictures = [_three_axes(each) for index in indices if (each := picture(int(index))) is not None]
    if not pictures:
        raise UserError(f"--data {name}: none of the {len(indices)} files looked at is a readable picture")
    sizes = [(each.shape[1], each.shape[0]) for each in pictures]
    coloured = float(np.mean([_is_coloured(each) for each in pictures])) >= _COLOURED
    borders = [_border(each, 3 if coloured else 1) for each in pictures]
    return Inspection(
        count=count,
        smallest=min(sizes, key=lambda size: (min(size), size)),
        largest=max(sizes, key=lambda size: (max(size), size)),
        channels=3 if coloured else 1,
        background=tuple(int(level) for level in np.median(np.concatenate(borders), axis=0)),
        ground=_ground(borders),
    )


def _three_axes(picture: Picture) -> Picture:
    return picture[..., None] if picture.ndim == 2 else picture


def _is_coloured(picture: Picture) -> bool:
    return bool(np.ptp(picture.astype(np.int16), axis=2).mean() > _COLOUR)


def _border(picture: Picture, channels: int) -> Picture:
    """The outermost ring of pixels, (N, channels)."""
    inside = np.zeros(picture.shape[:2], dtype=np.bool_)
    inside[1:-1, 1:-1] = True
    ring = picture[~inside]
    return ring[:, :1] if channels == 1 else np.broadcast_to(ring, (len(ring), 3))


def _ground(borders: list[Picture]) -> Literal["dark", "light", "plain", "mixed"]:
    plain = [(np.abs(border - np.median(border, axis=0)).max(axis=1) <= _NEAR).mean() for border in borders]
    if np.median(plain) < _PLAIN:
        return "mixed"
    light = float(np.mean([border.mean() > MID_GREY for border in borders]))
    if light >= _AGREE:
        return "light"
    return "dark" if light <= 1.0 - _AGREE else "plain"
