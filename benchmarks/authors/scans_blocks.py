"""Blocks of text in fonts and words that training never shows, and what damages them."""

import html
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from model_export.data import damages
from model_export.data.chance import choose
from model_export.data.pages import (
    FloatImage,
    font_files,
    load_font,
    noise_field,
    to_levels,
    wrap,
)
from service.artifact.pixels import Levels

_LINES: Final = 4
HANDBOOK: Final = Path(os.environ.get("SCANS_TEXT", "/usr/share/doc/debian-handbook/html/en-US"))
SEEN: Final[Mapping[str, tuple[damages.Damage, ...]]] = {
    # The first is the one under test; the others are weak.
    "light": (damages.light, damages.paper, damages.noise),
    "bleed": (damages.bleed, damages.paper, damages.noise),
    "blur": (damages.blur, damages.noise),
    "noise": (damages.noise,),
    "low resolution": (damages.low, damages.jpeg),
    "stain and fold": (damages.stain, damages.fold, damages.paper, damages.noise),
    "fade": (damages.fade, damages.paper, damages.noise),
    "specks": (damages.specks, damages.blur),
    "dirt": (damages.dirt, damages.streaks, damages.paper),
    "ruled": (damages.ruled, damages.paper, damages.noise),
    "halftone": (damages.halftone, damages.noise),
}
_PATTERNS: Final = ("dirt", "ruled", "halftone")  # which no method without training removes
GROUPS: Final[Mapping[str, Callable[[str], bool]]] = {
    "clean": lambda name: name == "clean",
    "seen": lambda name: name in SEEN and name not in _PATTERNS,
    "seen, dirt and patterns": lambda name: name in _PATTERNS,
    "unseen": lambda name: name.startswith("new"),
    "unseen, Augraphy": lambda name: name.startswith("augraphy"),
}
AUGRAPHY: Final = ("InkBleed", "BadPhotoCopy", "DirtyDrum", "ShadowCast", "Faxify")


def moire(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Waves of a screen that was photographed."""
    away = damages.across(image, g.uniform(0, np.pi))
    waves = np.sin(2 * np.pi * away / (em / g.uniform(3, 8)))
    return np.asarray(image * (0.85 - 0.2 * strength) + (0.06 + 0.1 * strength) * waves)


def ink_spread(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Too much ink on wet paper."""
    import cv2

    size = max(2, round(em * (0.04 + 0.03 * strength)))
    thick = cv2.erode(image.astype(np.float32), np.ones((size, size), np.uint8))
    near = cv2.GaussianBlur(1 - thick, (0, 0), em / 20) > 0.05
    thick = np.clip(thick + 0.25 * noise_field(g, image.shape, max(1, em / 15)) * near, 0, 1)
    return np.asarray(cv2.GaussianBlur(thick.astype(np.float32), (0, 0), em / 40) * 0.92)


def marker(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """A text marker over some lines."""
    out = image.copy()
    for top in np.arange(g.uniform(0, 2) * em, image.shape[0], g.uniform(1.5, 4) * em):
        left, right = np.sort(g.uniform(0, image.shape[1], 2)).astype(int)
        out[int(top) : int(top + em), left:right] *= g.uniform(0.75, 0.9) - 0.3 * strength
    return out


UNSEEN: Final[Mapping[str, damages.Damage]] = {
    "new: moire": moire,
    "new: ink spread": ink_spread,
    "new: marker": marker,
}


class Block(NamedTuple):
    """Lines of held-out text in a held-out font, as after a perfect scan."""

    image: Levels
    text: str
    dpi: int
    em: float
    hard: bool


@cache
def words() -> list[str]:
    """Prose of Debian's handbook in plain letters."""
    pages = "".join(file.read_text("utf-8") for file in sorted(HANDBOOK.glob("sect.*.html")))
    paragraphs = re.findall(r'<div class="para">(.*?)</div>', pages, re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]+>", "", " ".join(paragraphs)))
    return [word for word in text.split() if re.fullmatch(r"[A-Za-z0-9,.;:!?'()-]{1,18}", word)]


@cache
def faces() -> tuple[Path, ...]:
    return font_files(held_out=True)


def block(number: int) -> Block:
    """Blocks alternate between 150 and 300 dpi, and pairs of them between weak and strong
    damages.
    """
    g = np.random.default_rng((90, number, True))
    dpi = 300 if number % 2 else 150
    em = g.uniform(8.5, 12) * dpi / 72
    font = load_font(choose(g, faces()), round(em))
    start = int(g.integers(len(words()) - 400))
    width = int(3.7 * dpi)
    pad = int(0.22 * dpi)
    rows = wrap(font, " ".join(words()[start : start + 50 * _LINES]), width)[:_LINES]
    pitch = em * g.uniform(1.15, 1.4)
    image = Image.new("L", (width + 2 * pad, int(pitch * _LINES + em * 0.3) + 2 * pad), 255)
    for i, row in enumerate(rows):
        ImageDraw.Draw(image).text((pad, pad + i * pitch), row, font=font, fill=0)
    return Block(np.asarray(image), "\n".join(rows), dpi, em, number % 4 > 1)


def conditions(number: int, sample: Block) -> Iterator[tuple[str, Levels]]:
    """A block without damage, and with every damage. Block and damage have the same random numbers
    in every run.
    """
    clean = sample.image.astype(np.float32) / 255
    strength = 0.85 if sample.hard else 0.45
    yield "clean", sample.image
    for kind, (name, chain) in enumerate(SEEN.items()):
        g = np.random.default_rng((91, number, kind))
        image: FloatImage = clean
        # in the order in which they happen
        for damage in sorted(chain, key=list(damages.SHARES).index):
            image = damage(g, image, strength if damage is chain[0] else 0.25, sample.em)
        yield name, to_levels(image)
    for kind, (name, unseen) in enumerate(UNSEEN.items()):
        yield (
            name,
            to_levels(
                unseen(np.random.default_rng((92, number, kind)), clean, strength, sample.em)
            ),
        )
    for kind, name in enumerate(AUGRAPHY if find_spec("augraphy") else ()):
        yield f"augraphy: {name}", augraphy(name, sample.image, 1000 * number + kind)


def augraphy(name: str, image: Levels, seed: int) -> Levels:
    """A damage of the library Augraphy, whose random numbers are the global ones of `random` and
    numpy.
    """
    import augraphy as library

    random.seed(seed)
    np.random.seed(seed % 2**32)
    damage = getattr(library, name)(p=1)
    out = damage(np.repeat(image[..., None], 3, 2))
    return np.asarray(
        Image.fromarray(np.asarray(out, np.uint8)).convert("L").resize(image.shape[::-1])
    )
