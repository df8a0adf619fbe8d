"""Prepare an image as a row: composite on the background, convert to grey or RGB, invert, resize;
and fit its mask.

All sizes are (width, height) in pixels.
"""

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageStat

from service.artifact import pixels as levels
from service.artifact.card import Card
from service.domain.errors import InvalidContent
from service.domain.latents import FloatRow, FloatRows
from service.domain.tasks import split_luma
from service.images.decode import EncodedImage, Picture, Pixels
from service.images.untrusted import Size

Resize = Literal["fit", "crop", "stretch"]
Invert = bool | Literal["auto"]
# mode L, with the size in the file; white pixels are regenerated, black and transparent ones kept
Mask = Image.Image

_KEEP: Final = 0


def as_pixels(image: Image.Image) -> Pixels:
    """The pixels of an image of mode L, (H, W), or RGB, (H, W, 3); read-only."""
    width, height = image.size
    # For small images twice as fast as `np.asarray(image)`, which asks Pillow for an array
    # interface first.
    flat = np.frombuffer(image.tobytes(), np.uint8)
    return flat.reshape((height, width) if image.mode == "L" else (height, width, 3))


def background_levels(card: Card) -> tuple[int, ...]:
    """The background of the card as one 8-bit level per channel, by the formula of `to_uint8`."""
    lo, hi = card.range
    return tuple(round((value - lo) * 255 / (hi - lo)) for value in card.background)


class Prepared(NamedTuple):
    """A row (C, H, W) float32 in the model's range, C-contiguous, and whether light and dark were
    exchanged.

    ``chroma`` (3, H, W) is that of a colour image whose luma is the row: see `split_luma`.
    """

    row: FloatRow
    inverted: bool
    chroma: FloatRow | None = None


def prepare(
    picture: Picture, card: Card, *, resize: Resize = "fit", invert: Invert = "auto"
) -> Prepared:
    """Prepare an image as a row of the model.

    Alpha is composited on the background of the card. Grey models use ITU-R 601 luma, colour models
    repeat grey. A card with `color: luma` keeps the chroma, too. `auto` acts only for cards with
    polarity light-on-dark. It inverts an image if the outermost ring of pixels has a mean above
    127.5. It also inverts a transparent image if the visible pixels (alpha > 0) have a mean below
    127.5; that image is composited on white. Then the image is resized with Lanczos in 8 bit if its
    size differs. `fit` letterboxes on the background, `crop` cuts centrally, `stretch` ignores
    proportions.
    """
    is_split = card.color == "luma" and picture.image.mode in ("RGB", "RGBA")
    rows, inverted = prepare_many([(picture, resize, invert)], card.coloured if is_split else card)
    row, chroma = split_luma(rows[0]) if is_split else (rows[0], None)
    return Prepared(row, inverted[0], chroma)


def prepare_many(
    pictures: Iterable[tuple[Picture | Pixels, Resize, Invert]], card: Card
) -> tuple[FloatRows, list[bool]]:
    """As `prepare`, for several images at once: the rows (N, C, H, W), and which of them are
    inverted.

    An array has the size and the channels of the model.
    """
    fitted = list[Pixels]()
    inverted = list[bool]()
    for picture, resize, invert in pictures:
        inverts = invert is True
        auto = invert == "auto" and card.polarity == "light-on-dark"
        if isinstance(picture, Picture):
            pixels, inverts = _fitted(picture, resize, inverts, auto, card)
        else:
            inverts = levels.ring_mean(picture) > levels.MID_GREY if auto else inverts
            pixels = ~picture if inverts else picture
        fitted.append(pixels)
        inverted.append(inverts)
        del picture  # the next image is decoded now, and each may take 60 MB
    pixels = np.stack(fitted)
    channels = pixels[:, None] if card.shape[0] == 1 else np.moveaxis(pixels, -1, 1)
    return levels.to_rows(np.ascontiguousarray(channels), *card.range), inverted


def _fitted(
    picture: Picture, resize: Resize, inverts: bool, auto: bool, card: Card
) -> tuple[Pixels, bool]:
    """The pixels of an image in the model's size, and whether light and dark are exchanged."""
    mode = "L" if card.shape[0] == 1 else "RGB"
    target = (card.shape[2], card.shape[1])
    background = background_levels(card)
    dark_ink = auto and _is_dark_ink(picture.image, mode)
    flat = composite(picture.image, mode, (255,) * card.shape[0] if dark_ink else background)
    # The ring is that of the image before resizing, and the letterbox is background also when
    # inverted.
    if auto:
        inverts = dark_ink or levels.ring_mean(as_pixels(flat)) > levels.MID_GREY
    if inverts:
        flat = ImageChops.invert(flat)
    if flat.size != target:
        flat = fit_to_canvas(flat, target, resize, background, Image.Resampling.LANCZOS)
    return as_pixels(flat), inverts


def composite(image: Image.Image, mode: str, background: tuple[int, ...]) -> Image.Image:
    """Convert an image to `mode` (L or RGB); alpha is composited on the background before colours
    become grey.
    """
    if "A" not in image.getbands():
        return image if image.mode == mode else image.convert(mode)
    working_mode = "L" if image.mode == "LA" and mode == "L" else "RGB"
    fill = background * 3 if len(background) < len(working_mode) else background
    canvas = Image.new(working_mode, image.size, fill)
    canvas.paste(image.convert(working_mode), mask=image.getchannel("A"))
    return canvas if working_mode == mode else canvas.convert(mode)


def _is_dark_ink(image: Image.Image, mode: str) -> bool:
    if "A" not in image.getbands():
        return False
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return False
    visible = ImageStat.Stat(image.convert(mode), alpha)
    count = sum(visible.count)
    return count > 0 and sum(visible.sum) / count < levels.MID_GREY


def fit_to_canvas(
    image: Image.Image,
    target: Size,
    resize: Resize,
    fill: tuple[int, ...],
    resample: Image.Resampling,
) -> Image.Image:
    """Crop or resize an upright image as ``resize`` says, and centre it on a canvas of size
    ``target``.
    """
    if resize == "crop":
        # Crop first. The `box` argument of Pillow's `resize` would let the filter read pixels
        # outside the box.
        width, height = inscribed(target, image.size)
        left, top = _centred((width, height), image.size)
        image = image.crop((left, top, left + width, top + height))
    size = inscribed(image.size, target) if resize == "fit" else target
    canvas = Image.new(image.mode, target, fill)
    canvas.paste(image.resize(size, resample), _centred(size, target))
    return canvas


def inscribed(size: Size, frame: Size) -> Size:
    """The largest (width, height) with the aspect ratio of ``size`` inside ``frame``; each side is
    at least 1. An image of 56×25 in a frame of 28×28 becomes 28×round(25·28/56) = 28×12: ties go to
    even.
    """
    width, height = size
    frame_width, frame_height = frame
    # Compare products of integers, because quotients of floats could decide wrongly for equal
    # ratios.
    if frame_width * height <= frame_height * width:
        return frame_width, max(1, round(height * frame_width / width))
    return max(1, round(width * frame_height / height)), frame_height


def _centred(inner: Size, outer: Size) -> tuple[int, int]:
    # The left and top margin; an odd pixel is on the right and below.
    return (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2


def to_mask(encoded: EncodedImage, *, by_alpha: bool = False) -> Mask:
    """Decode a mask; one mask can serve any number of images. Its own EXIF orientation is ignored.

    ``by_alpha``: its transparent pixels are regenerated, whatever their colour; InvalidContent if
    it has no alpha.
    """
    image = encoded.decode_as_stored()
    if not by_alpha:
        return composite(image, "L", (_KEEP,))
    if "A" not in image.getbands():
        raise InvalidContent.field(
            encoded.field, "needs an alpha channel: its transparent pixels are regenerated"
        )
    return ImageChops.invert(image.getchannel("A"))


def keep_mask(
    mask: Mask, picture: Picture, card: Card, *, resize: Resize = "fit", field: str
) -> NDArray[np.bool_]:
    """Fit a mask to the row of its image: (1, H, W), True for pixels that every step restores (grey
    level below 128).

    A mask with the stored size of the image gets the image's transpose and `resize`, with nearest
    neighbour; the letterbox is kept. One with the size of the model stays as it is. Raises
    InvalidContent (`mask_size`) for others.
    """
    target = (card.shape[2], card.shape[1])
    grey = mask
    if grey.size == picture.stored_size:
        upright = grey if picture.transpose is None else grey.transpose(picture.transpose)
        grey = fit_to_canvas(upright, target, resize, (_KEEP,), Image.Resampling.NEAREST)
    elif grey.size != target:
        sizes = (f"{width}×{height}" for width, height in (grey.size, picture.stored_size, target))
        raise InvalidContent.field(
            field,
            "is {} pixels, neither as large as the image ({}) nor as the model ({})".format(*sizes),
            code="mask_size",
        )
    return (np.asarray(grey) < 128)[None]  # lighter pixels are regenerated
