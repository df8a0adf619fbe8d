"""Prepare a picture as a row: composite on the background, convert to grey or RGB, invert, and resize."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from service.artifact.card import ModelCard
from service.artifact.pixels import MID_GREY, ring_mean
from service.domain.latents import FloatRow, FloatRows
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
    rows, inverted = prepare_many([(picture, resize, invert)], card)
    return Prepared(rows[0], inverted[0])


def prepare_many(pictures: Iterable[tuple[Picture, Resize, Invert]], card: ModelCard) -> tuple[FloatRows, list[bool]]:
    """As `prepare`, for several pictures with their `resize` and `invert`; the arithmetic is on all at once.

    Returns:
        The rows (N, C, H, W), and which of them are inverted.
    """
    mode, target = "L" if card.shape[0] == 1 else "RGB", (card.shape[2], card.shape[1])
    background, white = background_levels(card), (255,) * card.shape[0]
    fitted: list[Pixels] = []  # of the model's size
    late: list[bool] = []  # to be inverted at the end
    inverted: list[bool] = []
    undecided: list[int] = []  # their ring decides
    for picture, resize, invert in pictures:
        auto = invert == "auto" and card.polarity == "light-on-dark"
        dark_ink = auto and _is_dark_ink(picture.image, mode)
        flat = composite(picture.image, mode, white if dark_ink else background)
        inverts = dark_ink or invert is True
        if flat.size == target:
            if auto and not dark_ink:
                undecided.append(len(fitted))
            fitted.append(as_pixels(flat))
            late.append(inverts)
        else:
            if auto and not dark_ink:
                inverts = ring_mean(as_pixels(flat)) > MID_GREY
            geometry = fit_geometry(flat.size, target, resize)
            source = ImageChops.invert(flat) if inverts else flat
            fitted.append(as_pixels(place_on_canvas(source, geometry, target, background, Image.Resampling.LANCZOS)))
            late.append(False)
        inverted.append(inverts)
    pixels = np.stack(fitted)
    if undecided:
        light = pixels[undecided][:, _ring(card.shape[1:])].reshape(len(undecided), -1).mean(axis=1) > MID_GREY
        for index, inverts in zip(undecided, light.tolist(), strict=True):
            late[index] = inverted[index] = inverts
    if any(late):
        pixels[late] = ~pixels[late]
    return to_rows(pixels, card), inverted


@lru_cache(maxsize=16)
def _ring(size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W): True for the outermost ring of pixels."""
    ring = np.ones(size, np.bool_)
    ring[1:-1, 1:-1] = False
    return ring


def composite(image: Image.Image, mode: str, background: tuple[int, ...]) -> Image.Image:
    """Convert a picture to `mode` (L or RGB); alpha is composited on the background before colours become grey."""
    if "A" not in image.getbands():
        return image if image.mode == mode else image.convert(mode)
    working_mode = "L" if image.mode == "LA" and mode == "L" else "RGB"
    fill = background * 3 if len(background) < len(working_mode) else background
    canvas = Image.new(working_mode, image.size, fill)
    opaque = Image.composite(image.convert(working_mode), canvas, image.getchannel("A"))
    return opaque if working_mode == mode else opaque.convert(mode)


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
