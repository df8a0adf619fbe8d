"""Prepare a picture as a row: composite on the background, convert to grey or RGB, invert, and resize."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageChops

from service.artifact.card import ModelCard
from service.artifact.pixels import MID_GREY, ring_mean
from service.domain.latents import FloatRow
from service.images.decode import Picture
from service.images.geometry import Resize, fit_geometry, place_on_canvas
from service.images.pixels import Pixels, as_pixels, background_levels, to_rows

Invert = bool | Literal["auto"]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A row prepared from a picture.

    Args:
        row: (C, H, W) float32 in the model's range, C-contiguous.
        inverted: whether light and dark were exchanged.
    """

    row: FloatRow
    inverted: bool


def prepare(picture: Picture, card: ModelCard, *, resize: Resize = "fit", invert: Invert = "auto") -> Prepared:
    """Prepare a picture as a row of the model.

    Alpha is composited on the background of the card. Grey models use ITU-R 601 luma, colour models repeat grey.
    `auto` acts only for cards with polarity light-on-dark. It inverts a picture if the outermost ring of pixels has a
    mean above 127.5. It also inverts a transparent picture if the visible pixels (alpha > 0) have a mean below 127.5;
    that picture is composited on white. Then the picture is resized with Lanczos in 8 bit if its size differs.

    Args:
        picture: from `decode_picture`.
        card: of the model; its shape, range, background and polarity are used.
        resize: `fit` letterboxes on the background, `crop` cuts centrally, `stretch` ignores proportions.
        invert: exchange light and dark: False, True or `auto`.
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
    """Convert a picture to `mode` (L or RGB); alpha is composited on the background before colours become grey."""
    if "A" not in image.getbands():
        return image if image.mode == mode else image.convert(mode)
    working_mode = "L" if image.mode == "LA" and mode == "L" else "RGB"
    fill = background * 3 if len(background) < len(working_mode) else background
    canvas = Image.new(working_mode, image.size, fill)
    opaque = Image.composite(image.convert(working_mode), canvas, image.getchannel("A"))
    return opaque if working_mode == mode else opaque.convert(mode)


def _flatten(image: Image.Image, card: ModelCard, mode: str, invert: Invert) -> tuple[Image.Image, Pixels | None, bool]:
    """The picture without alpha, its pixels if they were needed, and whether to invert it."""
    auto = invert == "auto" and card.polarity == "light-on-dark"
    if auto and _is_dark_ink(image, mode):
        return composite(image, mode, (255,) * card.shape[0]), None, True
    flat = composite(image, mode, background_levels(card))
    if not auto:
        return flat, None, invert is True
    pixels = as_pixels(flat)
    return flat, pixels, ring_mean(pixels) > MID_GREY


def _is_dark_ink(image: Image.Image, mode: str) -> bool:
    """Whether a picture is partly transparent and its visible pixels are dark on average."""
    if "A" not in image.getbands():
        return False
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return False
    counts = np.array(image.convert(mode).histogram(alpha)).reshape(-1, 256).sum(axis=0)
    visible = int(counts.sum())
    return visible > 0 and float(counts @ np.arange(256)) / visible < MID_GREY
