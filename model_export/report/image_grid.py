"""Labelled rows of pictures as one picture: torchvision lays out the grid, Pillow adds the text."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import make_grid

from service.artifact.pixels import to_levels
from service.domain.latents import FloatRows

_FONT_SIZE: Final = 15
_LINE: Final = 22  # height of a line of text
_MARGIN: Final = 8
_GAP: Final = 2  # between pictures
_MAX_SCALE: Final = 3
_MAX_SIDE: Final = 128  # of an enlarged picture
_WHITE: Final = 255
_WEBP_QUALITY: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageGrid:
    """A grid of pictures with labels. Labels are ASCII: Pillow's built-in font has few other characters."""

    caption: str  # line above the grid
    # Label and pictures (N, C, H, W) in [−1, 1] of every row; N is the same in all rows.
    rows: Sequence[tuple[str, FloatRows]]
    columns: Sequence[str] = ()  # labels above the columns, or none

    @property
    def scale(self) -> int:
        """Enlargement of a pixel: 3 up to 42×42, 2 up to 64×64, else 1."""
        return max(1, min(_MAX_SCALE, _MAX_SIDE // self._shape[1]))

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Position of a picture in the image: left, top, right, bottom, in pixels."""
        height, width = (side * self.scale for side in self._shape[1:])
        left, top = self._origin
        left, top = left + _GAP + column * (width + _GAP), top + _GAP + row * (height + _GAP)
        return left, top, left + width, top + height

    def encode(self, form: Literal["PNG", "WEBP"]) -> bytes:
        """The grid as PNG, grey or RGB, without metadata; or as WebP, whose losses are hard to see."""
        options = {"optimize": True} if form == "PNG" else {"quality": _WEBP_QUALITY, "method": 6}
        buffer = io.BytesIO()
        self._image().save(buffer, form, **options)
        return buffer.getvalue()

    def _image(self) -> Image.Image:
        grid = Image.fromarray(self._grid())
        (left, top), font = self._origin, _font()
        width = max(left + grid.width, _MARGIN + _text_width(self.caption)) + _MARGIN
        image = Image.new(grid.mode, (width, top + grid.height + _MARGIN), "white")
        image.paste(grid, (left, top))
        draw = ImageDraw.Draw(image)
        draw.text((_MARGIN, _MARGIN // 2), self.caption, fill="black", font=font)
        for column, label in enumerate(self.columns):
            draw.text((self.box(0, column)[0], top - _LINE + 2), label, fill="black", font=font)
        for row, (label, _) in enumerate(self.rows):
            _, upper, _, lower = self.box(row, 0)
            draw.text((_MARGIN, (upper + lower) // 2), label, fill="black", font=font, anchor="lm")
        return image

    def _grid(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """All pictures, enlarged without smoothing: (H, W) or (H, W, 3) uint8."""
        levels = torch.from_numpy(to_levels(np.concatenate([pictures for _, pictures in self.rows])))
        large = levels.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        # make_grid repeats grey pictures to three channels.
        grid = make_grid(large, nrow=len(self.rows[0][1]), padding=_GAP, pad_value=_WHITE).numpy()
        return grid[0] if self._shape[0] == 1 else np.ascontiguousarray(grid.transpose(1, 2, 0))

    @property
    def _shape(self) -> tuple[int, int, int]:
        channels, height, width = self.rows[0][1].shape[1:]
        return channels, height, width

    @property
    def _origin(self) -> tuple[int, int]:
        """Left and top of the grid, beside the labels."""
        left = 2 * _MARGIN + max(_text_width(label) for label, _ in self.rows)
        return left, _MARGIN + _LINE * (2 if self.columns else 1)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)


def _text_width(text: str) -> int:
    return round(_font().getlength(text))
