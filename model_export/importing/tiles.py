"""Measure how far around a pixel a network looks, and choose the tiles that images of any size are
cut into.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from model_export.errors import UserError
from model_export.export.artifact import smaller_tiles
from service.artifact.card import Tiles
from service.domain.latents import FloatRows

Function = Callable[[FloatRows], FloatRows]
# of tiles; the first is taken in which the overlap leaves half of a side
_SIDES: Final = (128, 256, 512)
_MULTIPLES: Final = (1, 2, 4, 8, 16, 32, 64)
_TRIALS: Final = 3  # random images: a ReLU may hide a path in one of them
_SAME: Final = 1e-5  # of the range; a smaller change is a rounding error


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far f looks: a pixel of y depends on pixels of x up to ``radius`` away; None: further
    than could be seen.

    f commutes with shifts by ``multiple`` pixels.
    """

    radius: int | None
    multiple: int


def measure_reach(f: Function, channels: int, side: int, values: tuple[float, float]) -> Reach:
    """Try f on random images of ``side``×``side`` pixels."""
    random = np.random.default_rng(0)
    (low, high) = values

    def some(*shape: int) -> FloatRows:
        return random.uniform(low, high, shape).astype(np.float32)

    images = some(_TRIALS, channels, side, side)
    results = f(images)
    limit = _SAME * (high - low)
    multiple = next(
        (each for each in _MULTIPLES if _commutes(f, images, results, each, limit)), None
    )
    if multiple is None:
        return Reach(radius=None, multiple=1)
    first = side // 2 // multiple * multiple
    middle = slice(first, first + multiple)
    other = images.copy()
    other[..., middle, middle] = some(_TRIALS, channels, multiple, multiple)
    changed = np.abs(f(other) - results).max(axis=(0, 1)) > limit
    rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
    reached = [
        (first - int(each[0]), int(each[-1]) - first - multiple + 1)
        for each in (rows, columns)
        if len(each)
    ]
    radius = max([0, *(far for pair in reached for far in pair)])
    # One pixel is little of the mean over an image, and of what a deep network sees at its edges:
    # with all others changed, too, the middle must stay. If it does not, f looks further than a
    # pixel showed.
    while radius < first - multiple:
        near = slice(first - radius, first + multiple + radius)
        other = np.full_like(images, low)
        other[..., near, near] = images[..., near, near]
        if np.abs(f(other) - results)[..., middle, middle].max() <= limit:
            return Reach(radius=radius, multiple=multiple)
        radius += max(1, radius // 4)
    return Reach(radius=None, multiple=multiple)


def _commutes(f: Function, images: FloatRows, results: FloatRows, shift: int, limit: float) -> bool:
    """Whether f of shifted images is shifted in the middle, where f sees no border unless it looks
    that far.
    """
    moved = f(np.roll(images, shift, axis=(2, 3)))
    middle = images.shape[-1] // 2
    here = slice(middle, middle + 8)
    there = slice(middle - shift, middle - shift + 8)
    return bool(np.abs(moved[..., here, here] - results[..., there, there]).max() <= limit)


def choose_tiles(
    f: Function,
    channels: int,
    values: tuple[float, float],
    *,
    side: int | None,
    overlap: int | None,
    takes_others: bool = True,
) -> Iterator[str | tuple[int, Tiles | None]]:
    """Yield lines for people, and last the side of a tile with its overlap; without, f takes images
    of one size.

    There are smaller tiles only if f ``takes_others``. Raises `UserError` if a ``side`` or an
    ``overlap`` that is given does not fit.
    """
    for tile in (side,) if side else _SIDES:
        reach = measure_reach(f, channels, tile, values)
        if reach.radius is None:
            continue
        if side and side % reach.multiple:
            raise UserError(
                f"--tile {side}: it reduces images by {reach.multiple}, so tiles must be a multiple"
            )
        needed = -(-reach.radius // reach.multiple) * reach.multiple
        chosen = needed if overlap is None else overlap
        if tile < 2 * (chosen + reach.multiple) or (side is None and tile < 4 * chosen):
            continue
        yield (
            f"measured: f looks {reach.radius} pixels far; tiles of {tile} pixels overlap by "
            f"{chosen}"
        )
        if chosen < reach.radius:
            yield (
                f"warning: --overlap {chosen} is less than {reach.radius}, so results depend "
                f"on where tiles begin"
            )
        smaller = [
            each
            for each in smaller_tiles(tile, reach.multiple)
            if takes_others and _runs(f, channels, each)
        ]
        yield tile, Tiles(overlap=chosen, multiple=reach.multiple, smaller=tuple(smaller))
        return
    tile = side or _SIDES[-1]
    yield f"warning: it looks too far for tiles, so images are resized to {tile}×{tile}"
    yield tile, None


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
