"""The spoiled pictures that figures show; `model_export.data.numpy_corruptions` has those by which restoration is measured."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.ndimage import gaussian_filter, grey_dilation, grey_erosion

from model_export.data.numpy_corruptions import Degradation, blur, hole, low_resolution, noise
from service.artifact.card import ModelCard
from service.domain.latents import FloatRows

_SIDE: Final = 28  # the picture side that thinning is stated for
_SKETCH_SIGMA: Final = 3.5
_SKETCH_RADIUS: Final = 10  # a kernel of 21 pixels
_LEAST: Final = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spoiling:
    """A way to spoil a picture, and what its figure calls it.

    Args:
        file: of the figure.
        name: for the caption.
        term: the spoiled picture as a formula.
        degrade: the way.
    """

    file: str
    name: str
    term: str
    degrade: Degradation


def spoilings(card: ModelCard) -> list[Spoiling]:
    """What is shown for this model: grey and sketch are for colour, thinning is for grey pictures."""
    common = [
        Spoiling(file="noise_0.15.png", name="noise, sigma 0.15", term="x + n", degrade=noise(0.15)),
        Spoiling(file="noise_0.8.png", name="noise, sigma 0.8", term="x + n", degrade=noise(0.8)),
        Spoiling(file="blur.png", name="blur", term="b(x)", degrade=blur(1.5)),
        Spoiling(file="low_resolution.png", name="low resolution", term="d(x)", degrade=low_resolution(4)),
        Spoiling(file="hole.png", name="hole", term="m(x)", degrade=hole(0.4)),
    ]
    if card.shape[0] == 1:
        thinning = thin(light=card.polarity != "dark-on-light")
        return [*common, Spoiling(file="thinned.png", name="thinned strokes", term="e(x)", degrade=thinning)]
    return [
        *common,
        Spoiling(file="grey.png", name="grey", term="g(x)", degrade=grey),
        Spoiling(file="sketch.png", name="sketch", term="s(x)", degrade=sketch),
    ]


def thin(*, light: bool) -> Degradation:
    """Strokes, light or dark, lose 1 pixel of a 28-pixel side: minimum or maximum over squares of 2×2."""

    def apply(x: FloatRows) -> FloatRows:
        side = 1 + max(1, round(x.shape[-1] / _SIDE))
        out: FloatRows = (grey_erosion if light else grey_dilation)(x, size=(1, 1, side, side), mode="nearest")
        return out

    return apply


def grey(x: FloatRows) -> FloatRows:
    """g(x): the mean of the channels, in each of them."""
    return np.ascontiguousarray(np.broadcast_to(x.mean(1, keepdims=True), x.shape))


def sketch(x: FloatRows) -> FloatRows:
    """s(x) = g(x + 1) / (blur(g(x + 1)) + 1e-10) − 1, Gaussian of σ 3.5 on 21 pixels (arXiv 2311.01462)."""
    light = grey(x + np.float32(1.0))
    blurred = gaussian_filter(light, _SKETCH_SIGMA, axes=(2, 3), radius=_SKETCH_RADIUS, mode="mirror")
    out: FloatRows = (light / (blurred + _LEAST) - 1.0).astype(np.float32)
    return out
