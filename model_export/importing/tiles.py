"""Measure how far around a pixel a network looks, and choose the tiles that images of any size are
cut into.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

import numpy as np

from model_export.errors import UserError
from model_export.export.artifact import smaller_tiles
from service.artifact.card import Tiles
from service.domain.latents import FloatRows

Function = Callable[[FloatRows], FloatRows]
# of tiles; the first is taken in which the overlap leaves half of a side
SIDES: Final = (128, 256, 512)
_MULTIPLES: Final = (1, 2, 4, 8, 16, 32, 64)
_TRIALS: Final = 3  # random images: a ReLU may hide a path in one of them
_SAME: Final = 1e-5  # of the range; a smaller change is a rounding error


def measure_reach(
    f: Function, channels: int, side: int, values: tuple[float, float]
) -> tuple[int | None, int]:
    """Try f on random images of ``side``×``side`` pixels.

    Returns how far f looks: a pixel of y depends on pixels of x up to so many away; None: further
    than could be seen. And by how many pixels f commutes with shifts.
    """
    random = np.random.default_rng(0)
    (low, high) = values
    images = random.uniform(low, high, (_TRIALS, channels, side, side)).astype(np.float32)
    results = f(images)
    limit = _SAME * (high - low)

    def commutes(shift: int) -> bool:
        """Whether f of shifted images is shifted in the middle, where f sees no border unless it
        looks that far.
        """
        moved = f(np.roll(images, shift, axis=(2, 3)))
        here = slice(side // 2, side // 2 + 8)
        there = slice(side // 2 - shift, side // 2 - shift + 8)
        return bool(np.abs(moved[..., here, here] - results[..., there, there]).max() <= limit)

    multiple = next(filter(commutes, _MULTIPLES), None)
    if multiple is None:
        return None, 1
    first = side // 2 // multiple * multiple
    middle = slice(first, first + multiple)

    def is_enough(radius: int) -> bool:
        """Whether the middle stays if everything further away changes."""
        near = slice(first - radius, first + multiple + radius)
        other = np.full_like(images, low)
        other[..., near, near] = images[..., near, near]
        return bool(np.abs(f(other) - results)[..., middle, middle].max() <= limit)

    radii = range(first - multiple)
    radius = bisect_left(radii, True, key=is_enough)
    return radius if radius in radii else None, multiple


def choose_tiles(
    f: Function,
    channels: int,
    values: tuple[float, float],
    *,
    side: int | None,
    overlap: int | None,
    takes_others: bool,
) -> tuple[list[str], int, Tiles | None]:
    """Lines for people, the side of a tile, and its overlap; without, f takes images of one size.

    There are smaller tiles only if f ``takes_others``. Raises `UserError` if a ``side`` or an
    ``overlap`` that is given does not fit.
    """
    for tile in (side,) if side else SIDES:
        radius, multiple = measure_reach(f, channels, tile, values)
        if radius is None:
            continue
        if side and side % multiple:
            raise UserError(
                f"--tile {side}: it reduces images by {multiple}, so tiles must be a multiple"
            )
        needed = -(-radius // multiple) * multiple
        chosen = needed if overlap is None else overlap
        if tile < 2 * (chosen + multiple) or (side is None and tile < 4 * chosen):
            continue
        lines = [
            f"measured: f looks {radius} pixels far; tiles of {tile} pixels overlap by {chosen}"
        ]
        if chosen < radius:
            lines.append(
                f"warning: --overlap {chosen} is less than {radius}, so results depend on where "
                "tiles begin"
            )
        smaller = [
            each
            for each in smaller_tiles(tile, multiple)
            if takes_others and _runs(f, channels, each)
        ]
        return lines, tile, Tiles(overlap=chosen, multiple=multiple, smaller=tuple(smaller))
    tile = side or SIDES[-1]
    return (
        [f"warning: it looks too far for tiles, so images are resized to {tile}×{tile}"],
        tile,
        None,
    )


def _runs(f: Function, channels: int, side: int) -> bool:
    """Whether f takes images of ``side``×``side`` pixels; some need more than they see around a
    pixel.
    """
    images = np.zeros((_TRIALS, channels, side, side), np.float32)
    try:
        result = f(images)
    except Exception:  # onnxruntime and torch raise errors of a dozen types
        return False
    return result.shape == images.shape and bool(np.isfinite(result).all())
