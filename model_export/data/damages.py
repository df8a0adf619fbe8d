"""Damages of scanned pages, each a function of (generator, image, strength, em).

An image is (H, W) float32 in [0, 1], 1 is white; the strength is 0 to 1; em is the height of the
type in pixels.
"""

import io
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw
from PIL.Image import Resampling
from scipy.ndimage import convolve, gaussian_filter, grey_dilation

from model_export.data.chance import choose
from model_export.data.pages import (
    FloatImage,
    fonts,
    load_font,
    noise_field,
    resized,
    smooth_field,
    to_levels,
)

Damage = Callable[[Generator, FloatImage, float, float], FloatImage]

_SHADOW_EDGE: Final = (6, 260)  # pixels


def _step(values: FloatImage) -> FloatImage:
    """A soft step from 0 to 1."""
    return 1 / (1 + np.exp(-np.clip(values, -30, 30)))


def _grid(image: FloatImage) -> FloatImage:
    """Rows and columns of the pixels: (2, H, W)."""
    return np.indices(image.shape).astype(np.float32)


def across(image: FloatImage, angle: float, x: float = 0.0, y: float = 0.0) -> FloatImage:
    """How far each pixel is from the line through (x, y) at this angle, in pixels."""
    rows, columns = _grid(image)
    return np.asarray((columns - x) * np.cos(angle) + (rows - y) * np.sin(angle))


def _slope(g: Generator, image: FloatImage) -> FloatImage:
    """How far each pixel is from a line through the middle, in any direction."""
    height, width = image.shape
    return across(image, g.uniform(0, 2 * np.pi), width / 2, height / 2)


def _cells(g: Generator, image: FloatImage) -> int:
    return int(np.clip(max(image.shape) / g.uniform(80, 400), 2, 12))


def light(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Uneven light: bumps, a slope, and perhaps the soft edge of a shadow."""
    low = 1 - (0.25 + 0.5 * strength) * g.uniform(0.6, 1)
    side = max(image.shape)
    slope = _slope(g, image) / (side / 2)
    lit = smooth_field(g, image.shape, _cells(g, image), low, 1.0)
    lit = lit * (1 - (1 - low) * 0.5 * (1 + np.clip(slope, -1, 1)) * g.uniform(0, 0.7))
    if g.random() < 0.4:
        edge = _step((slope - g.uniform(-0.6, 0.6)) * side / g.uniform(4, 80))
        lit = lit * (1 - edge * g.uniform(0.15, 0.3 + 0.35 * strength))
    return np.asarray(image * lit)


def shadow(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """A deep shadow over a part of the page, with an edge that is as soft as the light is wide."""
    away = _slope(g, image)
    soft = np.exp(g.uniform(*np.log(_SHADOW_EDGE)))
    edge = _step((away - g.uniform(-0.7, 0.5) * max(image.shape)) / soft)
    return image * (1 - edge * g.uniform(0.2, 0.35 + 0.3 * strength))


def paper(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Paper that is not white, with fibres and clouds."""
    level = 1 - g.uniform(0.03, 0.12 + 0.3 * strength)
    texture = sum(g.uniform(0, 1) * noise_field(g, image.shape, sigma) for sigma in (0.7, 2, 6, 20))
    return np.asarray(image * np.clip(level + (0.008 + 0.03 * strength) * texture, 0, 1))


def tint(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """A shaded box behind a part of the text, or darker strips about as high as its lines. Half of
    the boxes are paper of another kind, with grain and clouds.

    Text stands on a large dark box; without, it would look like a part of a photograph.
    """
    out = image.copy()
    strips = g.integers(1, 8) if g.random() < 0.5 else 0
    for _ in range(strips or 1):
        corners = g.uniform(-0.2, 1.2, (2, 2)) * image.shape
        if strips:
            corners[1, 0] = corners[0, 0] + g.uniform(0.6, 1.6) * em
        box = tuple(map(slice, *np.sort(corners, 0).clip(0).astype(int)))
        dark = (
            g.uniform(0.05, 0.3 + 0.3 * strength)
            if strips
            else g.uniform(0.03, 0.15 + 0.45 * strength)
        )
        grain: FloatImage | float = 0.0
        if not strips and g.random() < 0.5:
            sigma = g.uniform(0.6, 3)
            fine = noise_field(g, image.shape, sigma)
            clouds = noise_field(g, image.shape, 30)
            grain = (g.uniform(0, 0.15) * fine + g.uniform(0, 0.3) * clouds)[box]
        out[box] *= 1 - np.clip(dark * (1 + grain), 0, 0.8)
    return out


def ruled(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Ruled or squared paper under the text."""
    out = image.copy()
    step = max(4, int(em * g.uniform(0.5, 2.2)))
    pen = max(1, round(em * g.uniform(0.02, 0.08)))
    dark = g.uniform(0.6, 0.92) - 0.25 * strength
    squared = g.random() < 0.5
    slant = g.uniform(-0.02, 0.02)
    rows, columns = _grid(image)
    for along, other in ((rows, columns), (columns, rows))[: 2 if squared else 1]:
        out = np.where((along + slant * other + g.integers(step)) % step < pen, out * dark, out)
    return out


def halftone(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """A printed screen of dots as the ground of the page or of a part of it."""
    angle = g.uniform(0, np.pi / 2)
    pitch = max(2.5, em / g.uniform(5, 12))
    u = across(image, angle)
    v = across(image.T, -angle).T  # at a right angle to u
    dots = (
        np.cos(2 * np.pi * u / pitch) * np.cos(2 * np.pi * v / pitch)
        > g.uniform(0.45, 0.8) - 0.3 * strength
    )
    ground = gaussian_filter(
        1 - g.uniform(0.25, 0.6) * dots.astype(np.float32), g.uniform(0.4, 0.9)
    )
    if g.random() < 0.4:
        ground = np.where(smooth_field(g, image.shape, 4, 0, 1) > 0.5, ground, 1)
    return np.minimum(image, ground)


def stain(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Blots with uneven edges, dried drops with a dark rim, rings of a cup."""
    rows, columns = _grid(image)
    for _ in range(g.integers(1, 6)):
        y, x = g.uniform(0, image.shape).tolist()
        radius = g.uniform(0.8, 6) * em
        wide = g.random() < 0.35
        radius = g.uniform(80, 350) if wide else radius
        away = np.hypot((rows - y) * g.uniform(0.6, 1.6), columns - x)
        away = away + noise_field(g, image.shape, em / 2) * em * 0.15
        dark = g.uniform(0.1, 0.25 + (0.45 if wide else 0.35) * strength)
        edge = g.uniform(1, max(10, radius / 8))
        if g.random() < 0.35:
            mask = np.exp(-(((away - radius) / (em * g.uniform(0.1, 0.3))) ** 2))
        else:
            mask = _step((radius - away) / edge)
            if g.random() < 0.5:
                mask = mask * 0.6 + 0.5 * np.exp(-(((away - radius) / (2 + edge)) ** 2))
        image = image * (
            1 - dark * np.clip(mask * (1 + 0.15 * noise_field(g, image.shape, 3)), 0, 1)
        )
    return image


def spine(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """The shadow where a page bends towards the spine of a book, at any side."""
    turns, width = int(g.integers(4)), image.shape[0]
    away = np.arange(width, dtype=np.float32) + g.uniform(-0.2, 0.1) * width
    shade = np.exp(
        -((np.clip(away, 0, None) / (width * g.uniform(0.05, 0.5))) ** g.uniform(0.8, 2))
    )
    out = np.rot90(image, turns) * (1 - g.uniform(0.3, 0.45 + 0.45 * strength) * shade[:, None])
    return np.rot90(out, -turns)


def watermark(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Large pale letters under the text, oblique."""
    (height, width), size = image.shape, int(em * g.uniform(3, 9))
    layer = Image.new("L", (width, height), 255)
    letters = "".join(map(chr, g.integers(65, 91, 8)))
    font = load_font(choose(g, fonts()), size)
    ImageDraw.Draw(layer).text(
        (width / 2, height / 2), letters, int(255 * g.uniform(0.7, 0.92)), font, "mm"
    )
    turned = layer.rotate(g.uniform(-50, 50), Resampling.BILINEAR, fillcolor=255)
    return image * (np.asarray(turned, np.float32) / 255)


def fold(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Folds: a line that is dark, or where ink is worn off, with a shade beside it."""
    height, width = image.shape
    for _ in range(g.integers(1, 3)):
        angle = g.choice([0, np.pi / 2]) + g.normal(0, 0.06)
        away = across(image, angle, g.uniform(0, width), g.uniform(0, height))
        core = np.exp(-((away / g.uniform(0.5, 1.2 + 0.04 * em)) ** 2))
        if g.random() < 0.5:
            image = image + (0.9 - image) * core * g.uniform(0.3, 0.4 + 0.4 * strength)
        else:
            image = image * (1 - core * g.uniform(0.2, 0.3 + 0.4 * strength))
        shade = g.uniform(0, 0.1 + 0.15 * strength) * np.exp(-np.abs(away) / g.uniform(5, 40))
        image = image * (1 - np.where(away > 0, shade, 0))
    return image


def bleed(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """The back of the sheet shines through."""
    back = np.roll(image, (int(g.uniform(0.3, 9) * em), int(g.uniform(1, 9) * em)), (0, 1))[:, ::-1]
    back = gaussian_filter(back, max(0.5, em * g.uniform(0.015, 0.05)))
    return image * (1 - (1 - back) * g.uniform(0.08, 0.15 + 0.35 * strength))


def fade(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Ink that is pale, unevenly so, with gaps."""
    ink = smooth_field(
        g, image.shape, _cells(g, image), 0.65 - 0.42 * strength, 0.9 - 0.3 * strength
    )
    if g.random() < 0.4:
        ink = ink * np.where(
            noise_field(g, image.shape, max(0.7, em * 0.03)) > 1.2, 1 - 0.5 * strength, 1
        )
    if g.random() < 0.3:  # a thermal printer: dots of its head are worn
        ink = ink * np.clip(
            1 + g.uniform(0.1, 0.3) * noise_field(g, (1, image.shape[1]), 1), 0.4, 1
        )
    return 1 - (1 - image) * ink


def pale(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Faint print: no ink of the page is dark. Its letters are sharp, unlike those of `bleed`."""
    ink = 1 - (1 - image) * (0.42 - 0.3 * strength)
    return ink + g.standard_normal(image.shape, np.float32) * g.uniform(0, 0.012)


def dirt(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Dark dirt of a copier: clouds of toner with hard grains, often towards one side of the
    sheet.
    """
    slope = across(image, g.uniform(0, 2 * np.pi)) / max(image.shape)
    cloud = 0.5 * noise_field(g, image.shape, em * g.uniform(0.3, 3)) + g.uniform(0, 4) * (
        slope - slope.mean()
    )
    share = _step((cloud - g.uniform(0.3, 1.6)) * g.uniform(1, 5)) * g.uniform(
        0.1, 0.3 + 0.5 * strength
    )
    grain = noise_field(g, image.shape, g.uniform(0.4, 1.2)) + g.uniform(0, 1) * noise_field(
        g, image.shape, 3
    )
    hits = _step((grain + 3.2 * share - 2.2) * 8) * g.uniform(0.4, 0.95)
    return np.asarray(np.minimum(image, 1 - hits) * (1 - share * g.uniform(0, 0.5)))


def streaks(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Streaks of toner, or of a dirty sensor, along the direction of transport."""
    across = noise_field(g, (1, image.shape[1]), g.uniform(0.6, 0.1 * em + 1))[0]
    lines = np.clip((across - g.uniform(1.0, 2.0)) * g.uniform(0.4, 2), 0, 1) * g.uniform(
        0.1, 0.3 + 0.5 * strength
    )
    worn = np.clip(1 + noise_field(g, image.shape, em) * 0.5, 0, 1) if g.random() < 0.5 else 1.0
    mask = np.broadcast_to(lines * worn, image.shape).astype(np.float32)
    if g.random() < 0.5 and mask.shape[0] == mask.shape[1]:
        mask = mask.T
    return image * (1 - mask) if g.random() < 0.8 else image + (1 - image) * mask


def border(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Narrow dark edges, as a copier makes them. Wide ones look like dark boxes."""
    out = image
    for turns in range(4):
        if g.random() < 0.5:
            out = np.rot90(out, turns)
            depth = (
                em * g.uniform(0.2, 0.4 + 0.6 * strength)
                + noise_field(g, (1, out.shape[1]), 15) * em * 0.1
            )
            mask = _step(
                (depth - np.arange(out.shape[0], dtype=np.float32)[:, None]) / g.uniform(0.5, 4)
            )
            out = np.rot90(out * (1 - mask * g.uniform(0.5, 0.98)), -turns)
    return out


def contrast(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Less contrast, and another gamma."""
    black = g.uniform(0, 0.15 + 0.2 * strength)
    white = g.uniform(0, 0.15)
    return (black + (1 - black - white) * np.clip(image, 0, 1)) ** g.uniform(0.6, 1.5)


def blur(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Out of focus, or moved."""
    sigma = em * g.uniform(0.015, 0.025 + 0.03 * strength)
    if g.random() < 0.2:
        reach = max(1, round(sigma * 2.5))
        ends = reach * np.array([np.cos(a := g.uniform(0, np.pi)), np.sin(a)])
        steps = np.outer(ends, np.linspace(-1, 1, 4 * reach + 1))
        kernel = np.zeros((2 * reach + 1,) * 2)
        kernel[tuple(np.rint(reach + steps).astype(int))] = 1
        return convolve(image, (kernel / kernel.sum()).astype(np.float32), mode="nearest")
    return gaussian_filter(image, max(0.3, sigma))


def low(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Low resolution: down and up again; about 10 pixels an em remain."""
    factor = min(g.uniform(1.2, 1.6 + 1.6 * strength), max(1.1, em / 10))
    small = resized(image, [max(2, int(side / factor)) for side in image.shape], Resampling.BOX)
    ways = (Resampling.BILINEAR, Resampling.BICUBIC, Resampling.NEAREST)
    return resized(small, image.shape, choose(g, ways))


def noise(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Noise of a sensor, fine or coarse."""
    grain = (
        g.standard_normal(image.shape, np.float32)
        if g.random() < 0.7
        else noise_field(g, image.shape, g.uniform(0.6, 1.5))
    )
    return image + grain * g.uniform(0.02, 0.06 + 0.16 * strength)


def specks(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Salt and pepper, in dots of one pixel and of several."""
    share = g.uniform(0.002, 0.006 + 0.03 * strength)
    mask = g.random(image.shape) < share
    if g.random() < 0.5:
        size = max(2, int(em * g.uniform(0.03, 0.09)))
        mask |= grey_dilation(g.random(image.shape) < share / 8, size=(size, size))
    salt = noise_field(g, image.shape, 2) > g.uniform(-0.5, 1.0)
    return np.where(mask, np.where(salt, g.uniform(0.8, 1), g.uniform(0, 0.3)), image)


def one_bit(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """A bad scan in black and white: noise, then a threshold."""
    noisy = image + g.standard_normal(image.shape, np.float32) * g.uniform(
        0.02, 0.05 + 0.1 * strength
    )
    return np.asarray(noisy > np.median(noisy) * g.uniform(0.55, 0.85), np.float32)


def jpeg(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """The blocks of a JPEG file."""
    file = io.BytesIO()
    quality = int(max(6, g.uniform(50 - 40 * strength, 70 - 40 * strength)))
    Image.fromarray(to_levels(image)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32) / 255


SHARES: Final[dict[Damage, float]] = {
    # In the order in which they happen, each with the share of the pages that have it.
    fade: 0.2,
    pale: 0.1,
    watermark: 0.05,
    bleed: 0.3,
    tint: 0.35,
    paper: 0.45,
    ruled: 0.12,
    halftone: 0.06,
    stain: 0.3,
    spine: 0.1,
    fold: 0.12,
    light: 0.4,
    shadow: 0.15,
    dirt: 0.12,
    streaks: 0.07,
    border: 0.06,
    contrast: 0.2,
    blur: 0.35,
    low: 0.2,
    noise: 0.4,
    specks: 0.14,
    one_bit: 0.06,
    jpeg: 0.3,
}


# f would have to guess the shape of a letter, and tesseract reads blurred letters better than wrong
# guesses.
_SHAPES: Final = (blur, low)
# Others would leave nothing of faint print.
_BESIDE_PALE: Final = (pale, paper, light, shadow, spine, blur, jpeg)


def damaged(g: Generator, image: FloatImage, em: float) -> tuple[FloatImage, FloatImage]:
    """An image with one to about six damages, and what f shall make of it: the image with the
    damages of shapes only.

    One damage is as strong as it may be alone, and the more others, the weaker.
    """
    heavy = g.beta(1.0, 1.3)
    # A pale picture may be meant so.
    left_out = (fade, pale) if (image < 0.5).mean() > 0.25 else ()
    chosen = [
        damage for damage, share in SHARES.items() if g.random() < share and damage not in left_out
    ] or [noise]
    if pale in chosen:
        chosen = [damage for damage in chosen if damage in _BESIDE_PALE]
        heavy = heavy / 2
    hardest = pale if pale in chosen else choose(g, chosen)
    target = image
    for damage in chosen:
        weak = min(1.0, heavy * g.uniform(0.4, 1.3)) / (1 + 0.15 * (len(chosen) - 1))
        strength = g.beta(2.0, 1.0) if damage is hardest else weak
        seed = int(g.integers(2**63))
        image = damage(np.random.default_rng(seed), image, strength, em)
        if damage in _SHAPES:
            target = damage(np.random.default_rng(seed), target, strength, em)
    return image, target
