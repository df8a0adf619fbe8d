"""Clean pages: text, tables, boxes, diagrams, stamps, handwriting and photographs.

They are drawn with the fonts of this machine. The words are those of Python's own manual.
Photographs are those that scikit-image contains, and made ones. The families of `HELD_OUT_FONTS`
and the pictures of `HELD_OUT_PICTURES` are never drawn: they are for measurements.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import skimage
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps
from PIL.Image import Resampling
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from model_export.data.chance import choose
from model_export.errors import UserError
from service.artifact.pixels import Levels

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""
FloatImage = NDArray[np.floating[Any]]
"""(H, W)."""

# With the families that have the same outlines.
HELD_OUT_FONTS: Final = (
    "Liberation",
    "Arimo",
    "Cousine",
    "Tinos",
    "Carlito",
    "Lato",
    "Linux Libertine",
    "Linux Biolinum",
    "Charis",
    "Courier Prime",
    "Source Sans",
    "EB Garamond",
    "Vollkorn",
)
HELD_OUT_PICTURES: Final = ("camera.png", "coins.png", "moon.png")
_PICTURES: Final = (
    "astronaut.png",
    "coffee.png",
    "chelsea.png",
    "rocket.jpg",
    "brick.png",
    "motorcycle_left.png",
    "grass.png",
    "hubble_deep_field.jpg",
    "horse.png",
    "gravel.png",
    "retina.jpg",
)
_FONT_FOLDERS: Final = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts")
_FEW_FONTS: Final = 10
_FACES: Final = 6  # of a family, at most
_NO_TEXT: Final = re.compile(
    "Math|Emoji|Symbol|Dingbat|Initials|Outline|Icon|Variable|VF|Keyboard|Last Resort",
    re.IGNORECASE,
)
# A letter, and those that stand in its place in other languages.
_ACCENTS: Final = (
    "aáàâäãåąā",
    "cçćč",
    "eéèêëęě",
    "iíìîï",
    "lł",
    "nñńň",
    "oóòôöõøő",
    "sßśšş",
    "uúùûüůű",
    "yýÿ",
    "zżźž",
)
# The first letter and the one behind the last, and those of what stands at every third letter:
# marks, or a space.
_SCRIPTS: Final = (
    (0x20, 0x21, 0x20, 0x21),  # Latin words
    (0x3B1, 0x3CA, 0x20, 0x21),  # Greek
    (0x410, 0x450, 0x20, 0x21),  # Cyrillic
    (0x621, 0x63B, 0x64B, 0x653),  # Arabic
    (0x5D0, 0x5EB, 0x5B0, 0x5BD),  # Hebrew
    (0x905, 0x93A, 0x93E, 0x94E),  # Devanagari
    (0xE01, 0xE2F, 0xE34, 0xE3B),  # Thai
    (0x3041, 0x3095, 0x20, 0x21),  # Hiragana
    (0x4E00, 0x9FA6, 0x20, 0x21),  # Chinese
)
_LATIN: Final = 0.75  # share of the texts
_EM: Final = (11.0, 62.0)  # pixels: heights of the type, small print at 150 dpi to headings at 300
_TILT: Final = 3.0  # degrees


def font_files(*, held_out: bool, letters: str = "aQg7é") -> tuple[Path, ...]:
    """The fonts of this machine and of matplotlib with these letters, at most six of a family."""
    folders = [
        Path(mpl.get_data_path(), "fonts"),
        *(Path(each).expanduser() for each in _FONT_FOLDERS),
    ]
    faces: dict[str, dict[str, Path]] = {}
    for file in sorted(file for folder in folders for file in folder.rglob("*.[ot]t[fc]")):
        face = ImageFont.truetype(file, 16)
        family, style = (str(name) for name in face.getname())
        is_text = not _NO_TEXT.search(f"{file.name} {family}")
        if is_text and family.startswith(HELD_OUT_FONTS) == held_out and _draws(face, letters):
            faces.setdefault(family, {}).setdefault(style, file)
    return tuple(
        file for styles in faces.values() for file in _spread(list(styles.values()), _FACES)
    )


def _draws(face: ImageFont.FreeTypeFont, letters: str) -> bool:
    """Whether the letters differ from the box of a missing character."""
    missing = bytes(face.getmask("\uffff"))
    return all(bytes(face.getmask(letter)) not in (missing, b"") for letter in letters)


def _spread(items: Sequence[Path], count: int) -> Sequence[Path]:
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]


@cache
def fonts() -> tuple[Path, ...]:
    """The fonts with Latin letters to draw pages with."""
    found = font_files(held_out=False)
    if len(found) < _FEW_FONTS:
        raise UserError(
            f"{len(found)} fonts with Latin letters: install at least {_FEW_FONTS} "
            f"(docs/training.md)"
        )
    return found


@cache
def _foreign() -> list[tuple[tuple[int, ...], tuple[Path, ...]]]:
    """The other scripts, each with the fonts that have its first and its last letter."""
    found = [
        (each, font_files(held_out=False, letters=chr(each[0]) + chr(each[1] - 1)))
        for each in _SCRIPTS[1:]
    ]
    return [(script, files) for script, files in found if files]


@lru_cache(512)
def load_font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font of this size in pixels."""
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _words() -> list[str]:
    return [word for text in topics.values() for word in text.split() if len(word) < 20]


def _number(g: Generator) -> str:
    value = g.integers(1, 10 ** g.integers(2, 7)) / 10 ** g.integers(0, 3)
    return f"{value:n}{g.choice(list(' .%€–'))}"


def _text(g: Generator, count: int, script: Sequence[int]) -> str:
    """About ``count`` characters: words, numbers, or letters of another script in any order."""
    if script is not _SCRIPTS[0]:
        first, last, first_mark, last_mark = script
        letters = g.integers(first, last, count)
        marks = g.integers(first_mark, last_mark, count)
        marked, ends = g.random((2, count))
        signs = zip(letters, marks, marked < 0.35, ends < 0.2, strict=True)
        return "".join(
            chr(letter) + chr(mark) * bool(has) + " " * bool(end)
            for letter, mark, has, end in signs
        )
    kind, size = g.random(), count // 6 + 1
    if kind < 0.12:
        return " ".join(_number(g) for _ in range(size))
    start = int(g.integers(max(1, len(_words()) - size)))
    text = " ".join(_words()[start : start + size])
    if kind < 0.34:
        accents = {ord(each[0]): choose(g, each[1:]) for each in _ACCENTS if g.random() < 0.5}
        text = text.translate(accents)
    return text.upper() if g.random() < 0.06 else text


def wrap(font: ImageFont.FreeTypeFont, text: str, width: float) -> list[str]:
    """Break a text into lines of at most this width in pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


class _Painter:
    """Draws regions on a page that is ``scale`` times as large as the result."""

    def __init__(self, g: Generator, side: int, em: float, scale: int) -> None:
        self.g, self.em, self.scale = g, max(8, int(em * scale)), scale
        self.image = Image.new("L", (side * scale, side * scale), 255)
        self.draw = ImageDraw.Draw(self.image)
        self.choose_font()

    def choose_font(self) -> None:
        """A script and a font for it, of the height of the type."""
        choices = (
            [(_SCRIPTS[0], fonts())]
            if self.g.random() < _LATIN
            else _foreign() or [(_SCRIPTS[0], fonts())]
        )
        self.script, files = choose(self.g, choices)
        self.font = load_font(choose(self.g, files), self.em)

    def words(self, count: int) -> str:
        """About ``count`` characters that the font has."""
        return _text(self.g, count, self.script)

    def text(self, box: Box, ink: int) -> None:
        """One or two columns, a few lines underlined."""
        g = self.g
        em = self.em
        font = self.font
        (x0, y0, x1, y1) = box
        columns = 2 if x1 - x0 > 22 * em and g.random() < 0.3 else 1
        step = (x1 - x0) / columns
        pitch = em * g.uniform(1.0, 1.6)
        width = step - (em if columns > 1 else 0)
        rows = max(1, int((y1 - y0) / pitch))
        for column in range(columns):
            for i, line in enumerate(
                wrap(font, self.words(int(width / em * 2.2 * rows)), width)[:rows]
            ):
                at = (x0 + column * step, y0 + i * pitch)
                self.draw.text(at, line, font=font, fill=ink)
                if g.random() < 0.03:
                    under = at[1] + em * 1.15
                    self.draw.line(
                        (at[0], under, at[0] + font.getlength(line), under),
                        fill=ink,
                        width=max(1, em // 16),
                    )
        if g.random() < 0.15:
            self.draw.line((x0, y1, x1, y1), fill=ink, width=self._pen())

    def box(self, box: Box, ink: int) -> None:
        """Text on a dark ground or in a frame. A shaded ground is a damage, `tint`: it looks like a
        shadow.
        """
        g = self.g
        inner = self.em / 2
        dark = g.random() < 0.45
        ground = int(g.integers(0, 90)) if dark else 255
        outline = int(g.integers(0, 100)) if g.random() < 0.5 else None
        self.draw.rectangle(box, fill=ground, outline=outline, width=self._pen())
        x0, y0, x1, y1 = box
        self.text((x0 + inner, y0 + inner, x1 - inner, y1 - inner), 255 if dark else ink)

    def table(self, box: Box, ink: int) -> None:
        """Cells with rules."""
        g = self.g
        (x0, y0, x1, y1) = box
        edges = np.linspace(x0, x1, int(g.integers(3, 7)))
        pitch = self.em * g.uniform(1.3, 2.0)
        pen = self._pen()
        rows = max(1, int((y1 - y0) / pitch))
        for row in range(rows + 1):
            y = y0 + row * pitch
            self.draw.line((x0, y, x1, y), fill=ink, width=pen)
            for left, right in pairwise(edges) if row < rows else ():
                cell = wrap(self.font, self.words(int(g.integers(2, 14))), right - left)[0]
                if self.font.getlength(cell) < right - left - self.em / 3:
                    self.draw.text(
                        (left + self.em / 6, y + 0.15 * self.em), cell, font=self.font, fill=ink
                    )
        if g.random() < 0.7:
            for x in edges:
                self.draw.line((x, y0, x, y0 + rows * pitch), fill=ink, width=pen)

    def photograph(self, box: Box, ink: int) -> None:
        """A photograph and its caption."""
        x0, y0, x1, y1 = box
        bottom = y1 - 1.5 * self.em if self.g.random() < 0.7 else y1
        size = int(x1 - x0), int(bottom - y0)
        if min(size) > 30 * self.scale:
            self.image.paste(photograph(self.g, *size), (int(x0), int(y0)))
            self.text((x0, bottom + self.em / 5, x1, y1), ink)

    def diagram(self, box: Box, ink: int) -> None:
        """Axes with bars or curves, and labels."""
        g = self.g
        (x0, y0, x1, y1) = box
        y1 -= self.em * 1.4
        values = y1 - (y1 - y0) * np.clip(0.5 + np.cumsum(g.normal(0, 0.15, (3, 12)), 1), 0, 1)
        xs = np.linspace(x0, x1, 12)
        if g.random() < 0.5:
            for x, y in zip(xs[:-1], values[0], strict=False):
                self.draw.rectangle(
                    (x, y, x + (xs[1] - xs[0]) * 0.7, y1), fill=int(g.integers(0, 230)), outline=ink
                )
        else:
            for line in values:
                self.draw.line(
                    list(zip(xs, line, strict=True)),
                    fill=int(g.integers(0, 150)),
                    width=self._pen(),
                )
        self.draw.line((x0, y0, x0, y1, x1, y1), fill=ink, width=self._pen())
        self.draw.text((x0, y1), " ".join(self.words(30).split()[:5]), font=self.font, fill=ink)

    def stamp(self, box: Box, ink: int) -> None:
        """Text under a rubber stamp."""
        self.text(box, ink)
        g = self.g
        side = int(self.em * self.g.uniform(4, 8))
        layer = Image.new("L", (side, side), 255)
        draw = ImageDraw.Draw(layer)
        colour = int(g.integers(60, 170))
        pen = max(2, self.em // 10)
        shape = draw.ellipse if g.random() < 0.5 else draw.rectangle
        shape(
            (pen, side * g.uniform(0, 0.3), side - pen, side * g.uniform(0.7, 1)),
            outline=colour,
            width=pen,
        )
        draw.text((side / 2, side / 2), self.words(6)[:8], colour, self.font, "mm")
        layer = layer.rotate(g.uniform(-40, 40), Resampling.BILINEAR, fillcolor=255)
        at = int(g.uniform(box[0], max(box[0] + 1, box[2] - side))), int(box[1])
        under = self.image.crop((*at, at[0] + side, at[1] + side))
        self.image.paste(ImageChops.darker(under, layer), at)

    def writing(self, box: Box, ink: int) -> None:
        """Lines as of a pen: loops that run to the right."""
        g, em, (x0, y0, x1, y1) = self.g, self.em, box
        pen = max(1, int(em * g.uniform(0.04, 0.2)))
        for y in np.arange(y0 + em, y1, 1.8 * em):
            count = max(8, int((x1 - x0) / em * 14 * g.uniform(0.3, 1)))
            loops = gaussian_filter1d(g.normal(0, 1, (2, count)), 1.6, axis=1) * em
            xs = np.linspace(x0, x0 + count * em / 14, count) + 0.5 * loops[0]
            self.draw.line(
                list(zip(xs, y + loops[1], strict=True)), fill=ink, width=pen, joint="curve"
            )

    def _pen(self) -> int:
        return int(self.g.integers(1, 4)) * self.scale


_REGIONS: Final[Mapping[Callable[[_Painter, Box, int], None], float]] = {
    _Painter.text: 0.50,
    _Painter.box: 0.11,
    _Painter.table: 0.11,
    _Painter.photograph: 0.11,
    _Painter.diagram: 0.05,
    _Painter.stamp: 0.05,
    _Painter.writing: 0.06,
}


def draw_page(g: Generator, side: int) -> tuple[Levels, float]:
    """A part of a page (side, side), and the usual height of its type in pixels."""
    em, scale = float(np.exp(g.uniform(*np.log(_EM)))), int(g.choice([1, 1, 2, 3]))
    painter = _Painter(g, side, em, scale)
    shares = np.array([*_REGIONS.values()])
    margin = int(g.integers(0, side // 12)) * scale
    y = float(g.integers(-20, 60) * scale)
    end = side * scale
    while y < end:
        size = em * scale * (float(g.choice([1, 1, 1, 1, 1.4, 2.0])) if em < 45 else 1.0)
        painter.em = int(size)
        painter.choose_font()
        region = g.choice(np.array([*_REGIONS]), p=shares / shares.sum())
        height = size * g.uniform(2.2, 9)
        if region is _Painter.photograph or (region is _Painter.box and g.random() < 0.5):
            height = max(height, end * g.uniform(0.15, 0.9))
        # Pale ink beside black ink stays; on a page of its own it is a damage, `pale`.
        ink = int(g.integers(150)) if g.random() < 0.12 else 0
        region(painter, (margin, y, end - margin, y + height), ink)
        # Shadows lie on empty paper too.
        y += height + size * (g.uniform(2, 10) if g.random() < 0.15 else g.uniform(0.1, 1.5))
    image = painter.image
    if g.random() < 0.3:
        image = image.rotate(g.uniform(-_TILT, _TILT), Resampling.BICUBIC, fillcolor=255)
    return np.asarray(image.resize((side, side), Resampling.BOX)), em


def read_photograph(name: str) -> Image.Image:
    """A photograph that scikit-image contains, in grey."""
    return Image.open(Path(skimage.__file__).parent / "data" / name).convert("L")


@cache
def _photographs() -> list[Image.Image]:
    return [*map(read_photograph, _PICTURES)]


def photograph(g: Generator, width: int, height: int) -> Image.Image:
    """A part of a photograph, or a made one: shapes that hide one another, shaded and with
    grain.
    """
    if g.random() < 0.6:
        whole = choose(g, _photographs())
        share = g.uniform(0.4, 1.0) * min(whole.width / width, whole.height / height)
        w = share * width
        h = share * height
        left = g.uniform(0, whole.width - w)
        top = g.uniform(0, whole.height - h)
        return whole.resize((width, height), Resampling.BICUBIC, (left, top, left + w, top + h))
    image = Image.new("L", (width, height), int(g.integers(256)))
    draw = ImageDraw.Draw(image)
    side = max(width, height)
    for _ in range(g.integers(10, 150)):
        x = g.uniform(0, width)
        y = g.uniform(0, height)
        r = side * 0.5 * g.uniform(0.05, 1) ** 2
        shape = draw.ellipse if g.random() < 0.6 else draw.rectangle
        shape(
            (x - r * g.uniform(0.3, 1), y - r, x + r, y + r * g.uniform(0.3, 1)),
            fill=int(g.integers(256)),
        )
    image = image.filter(ImageFilter.GaussianBlur(g.uniform(0.5, 3)))
    levels = np.asarray(image, np.float32) * smooth_field(
        g, (height, width), int(g.integers(2, 7)), 0.6, 1.1
    )
    return Image.fromarray(
        to_levels(levels / 255 + noise_field(g, levels.shape, 1.0) * g.uniform(0, 0.05))
    )


def to_levels(image: FloatImage) -> Levels:
    """0…1 → levels, rounded and clipped."""
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def resized(
    image: NDArray[Any], shape: Sequence[int], how: Resampling = Resampling.BICUBIC
) -> FloatImage:
    """An image (h, w) in another size (H, W)."""
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize((shape[1], shape[0]), how))


def enlarged(image: Levels) -> Levels:
    """Twice as large."""
    return np.asarray(ImageOps.scale(Image.fromarray(image), 2))


def smooth_field(
    g: Generator, shape: Sequence[int], cells: int, low: float, high: float
) -> FloatImage:
    """A smooth random field (H, W) between two values, with this number of bumps on a side."""
    return low + (high - low) * np.clip(resized(g.random((cells, cells)), shape), 0, 1)


def noise_field(g: Generator, shape: Sequence[int], sigma: float) -> FloatImage:
    """Gaussian noise (H, W) of variance 1, smoothed over ``sigma`` pixels."""
    step = max(1, int(sigma))
    small = g.standard_normal((shape[0] // step + 2, shape[1] // step + 2), np.float32)
    field = resized(gaussian_filter(small, max(0.5, sigma / step)), shape, Resampling.BILINEAR)
    return field / max(float(field.std()), 1e-6)
