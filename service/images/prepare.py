"""`Picture` → row: flatten onto the background, grey or colour, invert, and fit to the model's shape."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from PIL import Image, ImageChops

from service.artifact.card import ModelCard
from service.domain.latents import FloatRow
from service.images.decode import Picture
from service.images.geometry import Resize, fit_geometry, place_on_canvas
from service.images.pixels import Pixels, as_pixels, background_levels, to_rows

Invert = bool | Literal["auto"]

_MID_GREY: Final = 127.5


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A row made from a picture.

    Args:
        row: (C, H, W) float32 in the model's range, C-contiguous.
        inverted: light and dark were exchanged.
    """

    row: FloatRow
    inverted: bool


def prepare(picture: Picture, card: ModelCard, *, resize: Resize = "fit", invert: Invert = "auto") -> Prepared:
    """Make the model's row of a picture.

    Alpha is composited on the card's background; grey models take ITU-R 601 luma, colour models repeat grey. `auto`
    acts for cards of polarity light-on-dark: a picture whose outermost pixel ring averages above 127.5 is inverted, and
    so is, composited on white instead, a transparent one whose visible pixels (alpha > 0) average below 127.5. Then
    Lanczos in 8 bit, unless the size is already the model's.

    Args:
        picture: what `decode_picture` gave.
        card: of the model: shape, range, background, polarity.
        resize: `fit` letterboxes on the background, `crop` cuts centrally, `stretch` ignores proportions.
        invert: exchange light and dark: never, always, or `auto`.
    """
    mode = "L" if card.shape[0] == 1 else "RGB"
    flat, pixels, inverted = _flatten(picture.image, card, mode, invert)
    target = (card.shape[2], card.shape[1])
    if flat.size == target:
        pixels = as_pixels(flat) if pixels is None else pixels
        return Prepared(to_rows(~pixels if inverted else pixels, card), inverted)
    if inverted:
        flat = ImageChops.invert(flat)
    geometry = fit_geometry(flat.size, target, resize)
    placed = place_on_canvas(flat, geometry, target, background_levels(card), Image.Resampling.LANCZOS)
    return Prepared(to_rows(as_pixels(placed), card), inverted)


def composite(image: Image.Image, mode: str, background: tuple[int, ...]) -> Image.Image:
    """The picture in `mode` (L or RGB), its alpha composited on the background before colours become grey."""
    if "A" not in image.getbands():
        return image if image.mode == mode else image.convert(mode)
    work = "L" if image.mode == "LA" and mode == "L" else "RGB"
    fill = background * 3 if len(background) < len(work) else background
    opaque = Image.composite(image.convert(work), Image.new(work, image.size, fill), image.getchannel("A"))
    return opaque if work == mode else opaque.convert(mode)


def _flatten(image: Image.Image, card: ModelCard, mode: str, invert: Invert) -> tuple[Image.Image, Pixels | None, bool]:
    """The picture without alpha, its pixels if they had to be looked at, and whether it is to be inverted."""
    auto = invert == "auto" and card.polarity == "light-on-dark"
    if auto and _is_dark_ink(image, mode):
        return composite(image, mode, (255,) * card.shape[0]), None, True
    flat = composite(image, mode, background_levels(card))
    if not auto:
        return flat, None, invert is True
    pixels = as_pixels(flat)
    return flat, pixels, _ring_mean(pixels) > _MID_GREY


def _is_dark_ink(image: Image.Image, mode: str) -> bool:
    """Partly transparent, and dark where it can be seen."""
    if "A" not in image.getbands():
        return False
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return False
    counts = np.array(image.convert(mode).histogram(alpha)).reshape(-1, 256).sum(axis=0)
    visible = int(counts.sum())
    return visible > 0 and float(counts @ np.arange(256)) / visible < _MID_GREY


def _ring_mean(pixels: Pixels) -> float:
    """Mean level of the outermost pixels, each counted once."""
    edges = [pixels[0]]
    if len(pixels) > 1:
        edges += pixels[-1], pixels[1:-1, 0]
        if pixels.shape[1] > 1:
            edges.append(pixels[1:-1, -1])
    levels = b"".join(edge.tobytes() for edge in edges)  # Python sums a hundred bytes before NumPy has begun
    return sum(levels) / len(levels)
