"""Figures as PNG: rows of pictures under one another, a label before each, enlarged without smoothing."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model_export.data.pixels import to_levels
from service.domain.latents import FloatRows

_FONT_SIZE: Final = 15
_LINE: Final = 22  # height of a line of text
_MARGIN: Final = 8
_GAP: Final = 2  # between pictures
_MOST_SCALE: Final = 3
_WANTED_SIDE: Final = 128  # of an enlarged picture, at most
_WHITE: Final = 255
_BLACK: Final = 0

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sheet:
    """One figure. Its text is ASCII: the font that comes with Pillow, which needs no file, has little more.

    Args:
        caption: line above everything.
        rows: label and pictures (N, C, H, W) in [−1, 1], one pair for each line; values beyond are cut.
        columns: labels above the pictures, or none.
    """

    caption: str
    rows: Sequence[tuple[str, FloatRows]]
    columns: Sequence[str] = ()

    @property
    def scale(self) -> int:
        """Side in the figure of one pixel: 3 up to 42×42, 2 up to 64×64, else 1."""
        return max(1, min(_MOST_SCALE, _WANTED_SIDE // self._shape[1]))

    def box(self, row: int, column: int) -> Box:
        """Where a picture lies in the figure: left, top, right, bottom, in pixels."""
        height, width = (side * self.scale for side in self._shape[1:])
        left = self._label_width + column * (width + _GAP)
        top = _MARGIN + _LINE * (2 if self.columns else 1) + row * (height + _GAP)
        return left, top, left + width, top + height

    def png(self) -> bytes:
        """The figure, grey or RGB, without metadata."""
        most = max(len(pictures) for _, pictures in self.rows)
        font = _font()
        right, bottom = self.box(len(self.rows) - 1, most - 1)[2:]
        width = max(right, _MARGIN + _width(self.caption, font)) + _MARGIN
        grey = self._shape[0] == 1
        image = Image.new("L" if grey else "RGB", (width, bottom + _MARGIN), _WHITE if grey else (_WHITE,) * 3)
        pen = ImageDraw.Draw(image)
        ink = _BLACK if grey else (_BLACK,) * 3
        pen.text((_MARGIN, _MARGIN // 2), self.caption, fill=ink, font=font)
        for column, label in enumerate(self.columns):
            left, top, *_ = self.box(0, column)
            pen.text((left, top - _LINE + 2), label, fill=ink, font=font)
        for row, (label, pictures) in enumerate(self.rows):
            top, bottom = self.box(row, 0)[1::2]
            pen.text((_MARGIN, (top + bottom) // 2), label, fill=ink, font=font, anchor="lm")
            for column, picture in enumerate(to_levels(pictures)):
                image.paste(self._enlarged(picture), self.box(row, column)[:2])
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    @property
    def _shape(self) -> tuple[int, int, int]:
        channels, height, width = self.rows[0][1].shape[1:]
        return channels, height, width

    @property
    def _label_width(self) -> int:
        font = _font()
        return 2 * _MARGIN + max(_width(label, font) for label, _ in self.rows)

    def _enlarged(self, picture: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]) -> Image.Image:
        large = picture.repeat(self.scale, axis=1).repeat(self.scale, axis=2)
        return Image.fromarray(large[0] if len(large) == 1 else np.ascontiguousarray(large.transpose(1, 2, 0)))


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)


def _width(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return round(font.getlength(text))
