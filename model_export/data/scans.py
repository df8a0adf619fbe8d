"""The data set `scans`: parts of drawn pages, clean and damaged.

A fifth of the pages has no damage; some of these are black and white. Half of the pages with type
that is large enough are scanned at half the resolution and enlarged, as small print is.
"""

from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from model_export.data.damages import damaged
from model_export.data.pages import draw_page, enlarged, to_levels
from model_export.data.processes import in_processes
from service.artifact.pixels import Levels

PAGES: Final = 7500
SIDE: Final = 384  # of a part
_UNDAMAGED: Final = 5  # every fifth page
_HELD_OUT: Final = 20  # every twentieth page
_INK: Final = 0.01  # share of dark pixels; of parts with less, few are kept
_FEW: Final = 0.15
_SMALLEST: Final = 18.0  # height of the type, in pixels, that can be halved
_SEED: Final = 7
_CHUNK: Final = 10  # pages that a process draws at once


def draw_scans(pages: int = PAGES, *, side: int = SIDE) -> dict[str, NDArray[Any]]:
    """Draw the set: `damaged_train`, `x_train`, which f shall make of it, and `x_test`, each (N,
    side, side) uint8.

    A page is a function of number, side and the fonts of this machine.
    """
    pairs = list(in_processes(partial(_pair, side), pages, chunk=_CHUNK, unit="page"))
    test = np.concatenate(pairs[::_HELD_OUT])
    train = np.concatenate([each for i, each in enumerate(pairs) if i % _HELD_OUT])
    return {"x_train": train[:, 0], "damaged_train": train[:, 1], "x_test": test[:, 0]}


def toned(page: Levels) -> Levels:
    """The page (H, W) with black ink and white paper; H and W are multiples of 4.

    Ink that is narrower than 20 pixels, on white paper, gets the darkness back that blur has taken.
    Grey edges stay.
    """
    widened = maximum_filter(page.reshape(page.shape[0] // 4, 4, -1, 4).mean((1, 3)), 5)
    on_paper = np.clip(minimum_filter(widened, 5) / 20 - 11.5, 0, 1).repeat(4, 0).repeat(4, 1)
    light = np.clip(page / 240 - 0.04, 0, 1)
    return to_levels(page / 255 - on_paper * np.maximum(page / 255 - light**2 * (3 - 2 * light), 0))


def _pair(side: int, number: int) -> Levels:
    """A part of a page and its damaged copy, (1, 2, side, side); none if it is nearly empty."""
    g = np.random.default_rng((_SEED, number))
    page, em = draw_page(g, side + side // 2)
    top, left = g.integers(side // 2, size=2)
    page = page[top : top + side, left : left + side]
    halved = em >= _SMALLEST and g.random() < 0.5
    if halved:
        page = np.asarray(Image.fromarray(page).reduce(2))
        em = em / 2
    scan = page
    if number % _UNDAMAGED:
        scan, page = (to_levels(each) for each in damaged(g, page.astype(np.float32) / 255, em))
    elif g.random() < 0.3:  # black and white, as of a good scanner
        scan = page = np.where(page < 128, 0, 255).astype(np.uint8)
    if halved:
        page, scan = (enlarged(each) for each in (page, scan))
    if number % _UNDAMAGED:
        page = toned(page)
    keep = (page < 128).mean() > _INK or g.random() < _FEW
    return np.stack([page, scan])[None][: int(keep)]
