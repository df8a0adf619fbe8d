"""Faces as people draw them with a pen: pairs of a drawing and pictures of faces that show what it
shows.

A drawing is made for the attributes of a picture, as a few strokes, of which some are left out.
What it does not show, such as colours, differs among the pictures that fit it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageColor, ImageDraw
from PIL.Image import Resampling
from torch import Tensor

from model_export.data.avatars import BACKGROUNDS
from model_export.data.datasets import Dataset
from model_export.data.drawings import CIRCLE, Points, lines

_COUNT: Final = 6000
_FITTING: Final = 4  # pictures for each drawing
_SIDE: Final = 192  # pixels on which is drawn
_WIDTHS: Final = (1.2, 6.5)  # of a pen, in pixels of a side of 64
_CORNERS: Final = 24  # of a line, which shake
# What the variants of the style look like in strokes, in their order. Mouth: smile, down, flat,
# open. Eyes: open, closed, the left or the right one closed. Hair: long, hat (t), bun, pigtails,
# tail (y), cap (k), curls, zigzag, mohawk, none.
_SIGNS: Final = {
    "mouth": "ssddsfofffffddoffofoosssssssss",
    "eyes": 18 * "o" + "cclroooo",
    "hair": "lltlllltlbbbbppyyyylllblll" + "kkctkkzzztzmnzmzccn",
}
_SKINS: Final = ("", "#f2d3b1", "#ecad80", "#9e5622", "#763900")
_PAPERS: Final = tuple(ImageColor.getrgb(f"#{background}") for background in BACKGROUNDS)
# In hundredths of the radius of the head.
_STROKES: Final = {
    "s": "-40,33 -22,48 0,54 22,48 40,33",
    "S": "-40,35 -22,58 0,66 22,58 40,35 -40,35",
    "d": "-40,55 -22,40 0,34 22,40 40,55",
    "f": "-40,45 40,45",
    "l": "0,-110 80,-90 110,0 120,90; 0,-110 -80,-90 -110,0 -120,90",
    "t": "-125,-70 125,-70; -70,-70 -65,-140 65,-140 70,-70",
    "b": "0,-105 -30,-120 -25,-155 0,-165 25,-155 30,-120 0,-105; -95,-30 -30,-60 40,-60 95,-30",
    "p": "-110,-30 -150,-40 -165,10 -140,50 -110,-30; 110,-30 150,-40 165,10 140,50 110,-30",
    "y": "60,-80 140,-60 150,60; 80,-60 120,-30 130,60",
    "k": "-105,0 -75,-75 0,-105 75,-75 105,0 50,-45 -40,-45 -105,0",
    "c": "-105,-20 -135,-60 -95,-75 -90,-120 -45,-100 0,-135 45,-100 90,-120 95,-75 135,-60 "
    "105,-20",
    "z": "-100,-30 -135,-85 -75,-70 -85,-140 -30,-95 0,-155 30,-95 85,-140 75,-70 135,-85 100,-30",
    "m": "-30,-95 -20,-150 0,-100 20,-155 30,-95",
    "closed": "-16,5 0,-5 16,5",
    "brow": "-18,-32 18,-32",
    "square": "-28,-24 28,-24 28,24 -28,24 -28,-24",
    "bridge": "-12,0 12,0",
    "nose": "0,0 8,20 -5,20",
}
_FREQUENT: Final = "sssddffo"  # mouths, so that as many point down as smile
# shares of drawings
_LEFT_OUT: Final = {"hair": 0.4, "glasses": 0.15, "brows": 0.65, "skin": 0.85, "ground": 0.35}
_WHITE: Final = (255, 255, 255)
_TILTS: Final = {0: 12, 1: 12, 6: -10}  # of brows that are angry or sad, by their variant


class _Pen:
    """A sheet of paper with a head's place on it, and a pen. Places are in units of the head's
    radius.
    """

    def __init__(self, g: Generator, paper: tuple[int, ...]) -> None:
        self.g, self.image = g, Image.new("RGB", (_SIDE, _SIDE), paper)
        self.ink = (0, 0, 0) if g.random() < 0.85 else tuple(g.integers(0, 90, 3).tolist())
        self.width = g.uniform(*_WIDTHS) * _SIDE / 64
        self._draw, self._shake = ImageDraw.Draw(self.image), g.uniform(0.0, 0.07)
        self.radius = g.uniform(0.26, 0.4) * _SIDE
        self._frame = self.radius * (np.diag(g.uniform(0.9, 1.12, 2)) + g.normal(0, 0.06, (2, 2)))
        self._middle = g.normal((0.5 * _SIDE, 0.53 * _SIDE), 0.04 * _SIDE)

    def stroke(self, line: Points, fill: tuple[int, ...] | None = None, width: float = 1.0) -> None:
        """Draw a line, ``width`` times as wide as the pen, around an area if that is filled."""
        t = np.linspace(0, 1, _CORNERS)
        waves = self.g.normal(0, self._shake, (5, 2))
        shaken = [_along(t, line[:, axis]) + _along(t, waves[:, axis]) for axis in (0, 1)]
        points = [(x, y) for x, y in np.stack(shaken, 1) @ self._frame + self._middle]
        if fill is not None:
            self._draw.polygon(points, fill)
        self._draw.line(points, self.ink, max(1, round(width * self.width)), "curve")
        for point in (points[0], points[-1]):
            self._draw.circle(point, width * self.width / 2, self.ink)

    def strokes(
        self, name: str, *, scale: float = 0.2, at: Sequence[float] = (0, 0), **how: Any
    ) -> None:
        """Draw strokes by their name, larger or smaller by up to ``scale``."""
        stretch = self.g.uniform(1 - scale, 1 + scale, 2)
        for line in lines(_STROKES[name]):
            self.stroke(line * stretch + at, **how)


def _along(t: Points, values: Points) -> Points:
    return np.interp(t, np.linspace(0, 1, len(values)), values)


def _ring(radius: float, squeeze: float = 1.0) -> Points:
    return radius * CIRCLE * (squeeze, 1.0)


def _draw_eyes(pen: _Pen, eyes: str, brows: int | None, *, glasses: bool) -> None:
    g = pen.g
    up = pen.g.uniform(-0.35, 0.0)
    size = max(pen.g.uniform(0.07, 0.16), 0.5 * pen.width / pen.radius)
    circled, square = g.random(2) < 0.33
    for side, closed in ((-1, "l"), (1, "r")):
        at = (side * g.uniform(0.3, 0.42), up)
        if eyes in ("c", closed):
            pen.strokes("closed", at=at)
        else:
            pen.stroke(_ring(size if not circled else size / 2) + at, pen.ink, 0.5)
            if circled:
                pen.stroke(_ring(max(0.2, 1.5 * size)) + at, None, 0.6)
        if brows is not None:
            tilt = side * _TILTS.get(brows, 0) / 100
            pen.stroke(lines(_STROKES["brow"])[0] + [(0, tilt), (0, -tilt)] + at)
        if glasses:
            pen.stroke((lines(_STROKES["square"])[0] if square else _ring(0.29)) + at, None, 0.7)
    if glasses:
        pen.strokes("bridge", at=(0, up), width=0.7)


def _draw_face(g: Generator, shown: Mapping[str, Any]) -> _Pen:
    """Draw the parts of a face that are shown."""
    pen = _Pen(g, _PAPERS[shown["ground"]] if "ground" in shown else _WHITE)
    skin = ImageColor.getrgb(_SKINS[shown["skin"]]) if shown.get("skin") else None
    head = np.roll(_ring(1.0, g.uniform(0.87, 1.1)), g.integers(40), 0)
    hair = shown.get("hair", "n")
    fill = pen.ink if g.random() < 0.25 and hair not in "ly" else None
    for part in g.permutation(["head", "hair"]):
        if part == "head":
            pen.stroke(head, skin)
        elif hair in _STROKES:
            pen.strokes(hair, fill=fill)
    _draw_eyes(pen, shown["eyes"], shown.get("brows"), glasses=shown.get("glasses", False))
    if shown["mouth"] == "o":
        pen.stroke(
            _ring(g.uniform(0.1, 0.25)) + np.array((0, 0.45)), pen.ink if g.random() < 0.3 else None
        )
    else:
        pen.strokes(
            "S" if shown["mouth"] == "s" and g.random() < 0.3 else shown["mouth"], scale=0.35
        )
    if g.random() < 0.2:
        pen.strokes("nose")
    return pen


def draw_pens(data: Dataset) -> tuple[Tensor, Tensor]:
    """Draw faces for the pictures of `avatars64`: (M, C, H, W) uint8, and the numbers (M, 4) of
    pictures that fit each.

    Some sheets are white, the others have one of the backgrounds, as the pictures that fit.
    """
    if data.attributes is None:
        raise ValueError("avatars64 has attributes")
    g = np.random.default_rng(0)
    shown = dict(zip(data.attributes.names, data.attributes.train.T, strict=True))
    grounds = (
        np.abs(data.train[:, None, :, 1, 1].numpy().astype(np.int64) - _PAPERS).sum(2).argmin(1)
    )
    kinds = {name: np.array([*signs])[shown[name]] for name, signs in _SIGNS.items()}
    kinds |= {
        "glasses": shown["glasses"] > 0,
        "brows": shown["brows"],
        "skin": shown["skin"],
        "ground": grounds,
    }
    rows = []
    fitting = []
    for i in range(_COUNT):
        alike = np.flatnonzero(kinds["mouth"] == _FREQUENT[i % len(_FREQUENT)])
        one = g.choice(alike)
        left_out = [name for name, share in _LEFT_OUT.items() if g.random() < share]
        parts = {name: values[one] for name, values in kinds.items() if name not in left_out}
        image = _draw_face(g, parts).image.resize(
            (data.train.shape[3], data.train.shape[2]), Resampling.BOX
        )
        rows.append(np.asarray(image).transpose(2, 0, 1))
        # A picture without glasses fits no drawing with them, and the other way round.
        for name, value in {"glasses": False, **parts}.items():
            alike = narrowed if len(narrowed := alike[kinds[name][alike] == value]) else alike
        fitting.append(g.choice(alike, _FITTING))
    return torch.from_numpy(np.stack(rows)), torch.from_numpy(np.stack(fitting))
