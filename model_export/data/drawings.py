"""Drawings that are no pictures of a data set: inputs u on which f is trained to be a projector,
and measured.

`random_drawings` makes those of training: letters and signs in fonts that matplotlib contains,
scribbles, polygons, simple figures, and mixtures, mirror images and bent copies of pictures.
`held_out_drawings` has other fonts and other figures.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.Image import Resampling
from torch import Tensor
from torch.nn import functional

from model_export.data.chance import choose
from service.artifact.pixels import Levels, to_rows
from service.domain.latents import FloatRows

Points = NDArray[np.floating[Any]]
"""The corners of a line (N, 2) in about [−1, 1], y downwards."""
Draw = Callable[[Tensor, torch.Generator], Tensor]
"""Makes as many rows that are no pictures as it gets pictures (B, C, H, W) in [−1, 1]."""


class Figure(NamedTuple):
    """Lines, or with ``filled`` the outlines of areas."""

    lines: Sequence[Points]
    filled: bool = False


_SIDE: Final = 112  # pixels on which is drawn
_BANK: Final = 4096  # drawings that training varies
# Without letters that people write like digits. Capitals are listed twice: f leaves them as they
# are longest.
_LETTERS: Final = 2 * "ACEFGHJKLMNPQRTUVWXY" + "abcdefghkmnpqrtuvwxy"
_DIGITS: Final = 3 * "0123456789" + "BDIOSZijlosz"  # and those letters
_SIGNS: Final = "ΓΔΛΞΠΣΦΨΩαβγδελμνπψωЖИЛФЦШЮЯбджийлцшэюя&%#@?!€+=×<>*"
_FONTS: Final = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "Mono", "Mono-Bold")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
_HELD_OUT_FONTS: Final = ("cmr10", "cmb10", "cmss10", "cmtt10")  # Computer Modern
_HELD_OUT_LETTERS: Final = "ACEFHKMNPRTUVWXYafhkmnrtuvwxye"


def lines(text: str) -> list[Points]:
    """Lines as `x,y x,y; x,y x,y`, in hundredths."""
    return [
        np.array([point.split(",") for point in line.split()], np.float64) / 100
        for line in text.split(";")
    ]


def polar(angles: Points, radii: Points) -> Points:
    """The corners (N, 2) at these angles, from the top clockwise, and radii, (N,) each."""
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], 1)


CIRCLE: Final = polar(np.linspace(0, 2 * np.pi, 41), np.ones(41))
_OUTLINES: Final = (
    *([CIRCLE[::step]] for step in (1, 5, 8, 10)),
    *map(
        lines,
        (
            "0,-90 90,80 -90,80 0,-90",
            "-80,-80 80,-80 80,80 -80,80 -80,-80",
            "-50,-90 50,-90 50,90 -50,90 -50,-90",
            # heart
            "0,-50 25,-90 60,-95 90,-65 90,-30 0,90 -90,-30 -90,-65 -60,-95 -25,-90 0,-50",
        ),
    ),
)
_FIGURES: Final = (
    Figure(lines("-100,0 100,0; 0,-100 0,100")),
    *(Figure(lines, filled) for lines in _OUTLINES for filled in (False, True)),
)
_HELD_OUT_FIGURES: Final = (
    Figure(lines("-100,10 0,-100 100,10; -70,-20 -70,100 70,100 70,-20")),  # house
    Figure([polar(4 * np.pi / 5 * np.arange(6), np.ones(6))]),  # star
    Figure(lines("-100,0 100,0; 40,-60 100,0 40,60")),  # arrow
    Figure([polar(np.linspace(1, 15, 60), np.linspace(1, 15, 60) / 16)]),  # spiral
    # fish
    Figure([CIRCLE * (0.8, 0.5) - (0.2, 0.0), *lines("60,0 110,-50 110,50 60,0")]),
    Figure(lines("-80,40 80,40 0,-100; -15,40 15,40 15,100 -15,100"), filled=True),  # tree
    Figure(
        [np.concatenate([CIRCLE[:21], CIRCLE[20::-1] * (0.5, 1)])],
        True,
    ),
    # ladder
    Figure(lines("-50,-100 -50,100; 50,-100 50,100; -50,-50 50,-50; -50,10 50,10; -50,70 50,70")),
)

_EYES: Final = [0.12 * CIRCLE[::4] + (x, -0.2) for x in (-0.35, 0.35)]
_HELD_OUT_FACES: Final = tuple(
    Figure([*outline, *_EYES, *mouth])
    for outline, mouth in (
        ([CIRCLE], lines("-40,35 -20,50 0,55 20,50 40,35")),
        # a robot
        (lines("-85,-85 85,-85 85,90 -85,90 -85,-85; 0,-85 0,-125"), lines("-40,50 40,50")),
        (
            [
                CIRCLE,
                *lines("-110,-75 110,-75; -60,-80 -60,-130 60,-130 60,-80"),
            ],
            [_EYES[0] * 0.9],
        ),
        (
            [
                CIRCLE,
                *lines("-95,-40 -120,100; -80,-70 -100,100; 95,-40 120,100"),
            ],
            lines("-30,45 30,55"),
        ),
    )
)


def _random_figure(g: Generator) -> Figure:
    """A simple figure, a random polygon, straight lines, or smooth lines."""
    kind = g.integers(4)
    corners = g.integers(3, 9)
    if kind == 0:
        return choose(g, _FIGURES)
    if kind == 1:
        outline = polar(np.sort(g.uniform(0, 2 * np.pi, corners)), g.uniform(0.5, 1.3, corners))
        return Figure([np.concatenate([outline, outline[:1]])], bool(g.integers(2)))
    if kind == 2:
        return Figure([*g.uniform(-1, 1, (corners, 2, 2))[: g.integers(2, 6)]])
    path = np.cumsum(g.normal(0, 0.6, (corners, 2)), 0)
    return Figure([_smooth(path - path.mean(0)) for _ in range(g.integers(1, 3))])


def _smooth(corners: Points) -> Points:
    """A curve near these corners, no longer than the canvas allows."""
    t = np.linspace(0, len(corners) - 1, 40)
    places = np.arange(len(corners))
    weights = np.exp(-2 * np.square(t[:, None] - places))
    line = (weights / weights.sum(1, keepdims=True)) @ corners
    return line / np.abs(line).max().clip(0.7)


def _render(g: Generator, figure: Figure, side: int) -> Levels:
    """Draw a figure in random size and width of the line: (side, side), 255 on 0."""
    image = Image.new("L", (_SIDE, _SIDE))
    draw = ImageDraw.Draw(image)
    width = int(g.integers(6, 15))
    size = g.uniform(0.2, 0.36) * _SIDE
    for line in figure.lines:
        points = [(x, y) for x, y in line * size + _SIDE / 2]
        if figure.filled:
            draw.polygon(points, fill=255)
        else:
            draw.line(points, fill=255, width=width, joint="curve")
            for point in (points[0], points[-1]):
                draw.circle(point, width / 2, fill=255)
    return _finish(g, image, side)


def _glyph(g: Generator, fonts: Sequence[str], characters: str, side: int) -> Levels:
    """Draw a random character in random size and weight: (side, side), 255 on 0."""
    image = Image.new("L", (_SIDE, _SIDE))
    font = _font(choose(g, fonts), int(g.integers(56, 93)))
    character = choose(g, characters)
    weight = int(g.integers(0, 4))
    ImageDraw.Draw(image).text(
        (_SIDE / 2, _SIDE / 2), character, 255, font, "mm", stroke_width=weight
    )
    return _finish(g, image, side)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)


def _finish(g: Generator, image: Image.Image, side: int) -> Levels:
    soft = image.filter(ImageFilter.GaussianBlur(g.uniform(1.0, 2.5)))
    levels = np.asarray(soft.resize((side, side), Resampling.BOX), np.float64)
    return (levels * (255 / max(levels.max(), 1.0))).astype(np.uint8)


def training_drawings(count: int, side: int, seed: int, *, digits: bool) -> Levels:
    """Letters, signs and figures, and with ``digits`` digits, not yet varied: (count, side, side),
    255 on 0.
    """
    g = np.random.default_rng(seed)
    letters = _LETTERS + _DIGITS * digits

    def drawing(index: int) -> Levels:
        if index % 5 < 3:
            return _glyph(g, _FONTS, _SIGNS if g.random() < 0.3 else letters, side)
        return _render(g, _random_figure(g), side)

    return np.stack([drawing(i) for i in range(count)])


def held_out_drawings(count: int, side: int, *, faces: bool) -> Mapping[str, Levels]:
    """`letters`, `shapes` and `faces`, (count, side, side) each, 255 on 0. Training has other fonts
    and figures.
    """
    g = np.random.default_rng(0)
    kinds = {
        "letters": np.stack(
            [_glyph(g, _HELD_OUT_FONTS, _HELD_OUT_LETTERS, side) for _ in range(count)]
        )
    }
    figures = {
        "shapes": _HELD_OUT_FIGURES,
        **({"faces": _HELD_OUT_FACES} if faces else {}),
    }
    return kinds | {
        name: np.stack([_render(g, known[i % len(known)], side) for i in range(count)])
        for name, known in figures.items()
    }


def on_background(
    ink: Levels, channels: int, background: Sequence[float], pens: FloatRows | None = None
) -> FloatRows:
    """Drawings (N, H, W), 255 on 0, as rows (N, channels, H, W): light on a dark background, dark
    on a light one.

    ``pens`` (N, channels) are colours to draw with instead.
    """
    ground: FloatRows = np.broadcast_to(np.asarray(background, np.float32), channels)[:, None, None]
    plain: FloatRows = np.where(ground > 0, np.float32(-1), np.float32(1))
    contrast: FloatRows = (plain if pens is None else pens[:, :, None, None]) - ground
    return ground + to_rows(ink[:, None], 0.0, 1.0) * contrast


def random_drawings(
    colours: Tensor, background: Sequence[float], seed: int, *, digits: bool = False
) -> Draw:
    """What draws rows that are no pictures: four of ten upright, three bent and turned, three made
    of pictures.

    In colour, a drawing has a pen of the colour of a random pixel of ``colours`` (N, C, H, W).
    """
    channels, side, _ = colours.shape[1:]
    device = colours.device
    g = np.random.default_rng(seed)
    # Twice the side of a row: after the bending, the average over 2×2 pixels smooths the steps of
    # slant lines.
    drawings = training_drawings(_BANK, 2 * side, seed, digits=digits)
    pens = None
    if channels == 3:
        pixels = colours.permute(0, 2, 3, 1).reshape(-1, 3).cpu().numpy()
        pens = pixels[g.integers(len(pixels), size=_BANK)]
    rows = on_background(drawings, channels, background, pens)
    ground = torch.tensor(background, device=device).expand(channels)[:, None, None]
    ink = torch.from_numpy(rows).to(device) - ground

    def draw(pictures: Tensor, generator: torch.Generator) -> Tensor:
        made = 3 * len(pictures) // 10
        upright = 4 * len(pictures) // 10
        size = (len(pictures) - made,)
        chosen = torch.randint(len(ink), size, generator=generator, device=device)
        mixed = _mixed((pictures - ground)[: 2 * made])
        mixed = functional.interpolate(mixed, scale_factor=2.0, mode="bilinear")
        strength = torch.ones(len(pictures), device=device)
        strength[:upright] = 0.1
        bent = _bend(torch.cat([ink[chosen], mixed]), strength, generator)
        return functional.avg_pool2d(bent, 2) + ground

    return draw


def _mixed(ink: Tensor) -> Tensor:
    """Of 2·N pictures as ink on 0, N: halves of two, two over one another, and single ones, a third
    each.
    """
    mixed, others = ink.chunk(2)
    mixed, third, middle = mixed.clone(), len(mixed) // 3, ink.shape[-1] // 2
    mixed[:third:2, :, :, middle:] = others[:third:2, :, :, middle:]
    mixed[1:third:2, :, middle:] = others[1:third:2, :, middle:]
    over = others[third : 2 * third].roll(middle // 3, 3)
    under = mixed[third : 2 * third].roll(-middle // 3, 3)
    mixed[third : 2 * third] = torch.where(over.abs() > under.abs(), over, under)
    return mixed


def _bend(ink: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, stretch, mirror, shift and bend rows (B, C, H, W) of ink on 0; ``strength`` (B,) is 0
    to 1.
    """
    count = len(ink)
    device = generator.device
    u = (torch.rand((8, count), generator=generator, device=device) * 2 - 1) * strength
    cosine = (0.5 * u[0]).cos()
    sine = (0.5 * u[0]).sin()
    # of the coordinates; below 0 they mirror
    scales = (1 + 0.2 * u[1:3]) * torch.where(u[3:5] > 0.4, -1.0, 1.0)
    rows = [
        cosine * scales[0],
        0.3 * u[5] - sine,
        0.15 * u[6],
        sine,
        cosine * scales[1],
        0.15 * u[7],
    ]
    grid = functional.affine_grid(
        torch.stack(rows, 1).view(count, 2, 3), list(ink.shape), align_corners=False
    )
    waves = (
        torch.randn((count, 2, 4, 4), generator=generator, device=device)
        * 0.1
        * strength.view(-1, 1, 1, 1)
    )
    waves = functional.interpolate(waves, ink.shape[2:], mode="bicubic", align_corners=True)
    return functional.grid_sample(ink, grid + waves.permute(0, 2, 3, 1), align_corners=False)
