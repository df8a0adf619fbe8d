"""From images to rows, and back to levels. The oracle takes one step of docs/http-api.md after the
other.
"""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageChops

from service.artifact.card import ModelCard
from service.images.decode import ImageBytes, Picture
from service.images.encode import to_uint8
from service.images.prepare import Resize, keep_mask, prepare, prepare_many, to_mask
from tests.helpers import pictures as make
from tests.helpers.pictures import decode_picture

Levels = NDArray[np.uint8]
SIDE = st.integers(1, 6) | st.integers(1, 40)
SIDES = st.tuples(SIDE, SIDE)
RESIZES = st.sampled_from(["fit", "crop", "stretch"])


def picture(pixels: Levels) -> Picture:
    return decode_picture(make.save(pixels))


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-0.3, 2.7), (0.0, 255.0), (-1000.0, 0.001)])
def test_every_level_survives_the_round_trip(bounds: tuple[float, float]) -> None:
    card = make.card((1, 16, 16), bounds=bounds)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    rows, _ = prepare_many([(pixels[0], "fit", False)], card)
    expected = np.float32(bounds[0] + np.arange(256.0) * (bounds[1] - bounds[0]) / 255)
    np.testing.assert_array_equal(rows, expected.reshape(1, 1, 16, 16), strict=True)
    assert np.array_equal(to_uint8(rows, card), pixels)


@pytest.mark.parametrize(
    ("low", "high", "numbers", "levels"),
    [
        (0.0, 255.0, [0.5, 1.5, 2.5, 254.5, -3.0, np.inf, -np.inf], [0, 2, 2, 254, 0, 255, 0]),
        (-1.0, 1.0, [-(2.0**-30), 0.0, 2.0**-30], [127, 128, 128]),  # 127.5 is the tie
    ],
)
def test_back_to_levels_rounds_ties_to_even_and_clips(
    low: float, high: float, numbers: list[float], levels: list[int]
) -> None:
    card = make.card((1, 1, len(levels)), bounds=(low, high))
    assert to_uint8(np.array([[[numbers]]], dtype=np.float32), card).tolist() == [[levels]]


def inside(size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """The largest size of these proportions in a frame; ties go to even."""
    scale = min(Fraction(frame[0], size[0]), Fraction(frame[1], size[1]))
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def placed(
    image: Image.Image, size: tuple[int, int], resize: Resize, fill: Any, resample: Image.Resampling
) -> Levels:
    """An image on a canvas of this (width, height), centred; an odd pixel is right and below."""
    if resize == "crop":
        across, down = inside(size, image.size)
        left = (image.width - across) // 2
        top = (image.height - down) // 2
        image = image.crop((left, top, left + across, top + down))
    across, down = inside(image.size, size) if resize == "fit" else size
    canvas = Image.new(image.mode, size, fill)
    small = image if image.size == (across, down) else image.resize((across, down), resample)
    canvas.paste(small, ((size[0] - across) // 2, (size[1] - down) // 2))
    return np.asarray(canvas)


def expected(pixels: Levels, card: ModelCard, resize: Resize, invert: Any) -> tuple[Levels, bool]:
    """The row of an image (H, W, bands) as levels, and whether it is inverted."""
    mode = "L" if card.shape[0] == 1 else "RGB"
    fill = np.rint((np.array(card.background) + 1) * 127.5)
    auto = invert == "auto" and card.polarity == "light-on-dark"
    is_dark_ink = False
    if pixels.shape[-1] in (2, 4):
        alpha = pixels[..., -1:] / 255
        seen = np.asarray(Image.fromarray(pixels).convert(mode))[alpha[..., 0] > 0]
        is_dark_ink = auto and alpha.min() < 1 and seen.size > 0 and seen.mean() < 127.5
        paper = 255 if is_dark_ink else fill
        pixels = np.rint(pixels[..., :-1] * alpha + paper * (1 - alpha)).astype(np.uint8)
    flat = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert(mode)
    ring = np.ones(flat.size[::-1], np.bool_)
    ring[1:-1, 1:-1] = False
    is_light = np.asarray(flat)[ring].mean() > 127.5
    inverted = bool(is_dark_ink or (is_light if auto else invert is True))
    flat = ImageChops.invert(flat) if inverted else flat
    levels = tuple(int(level) for level in fill)
    return placed(flat, card.shape[:0:-1], resize, levels, Image.Resampling.LANCZOS), inverted


@settings(max_examples=200)
@given(
    shape=SIDES,
    target=SIDES | st.none(),
    bands=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    is_coarse=st.booleans(),
    alpha=st.sampled_from([None, None, 0, 255]),
    channels=st.sampled_from([1, 3]),
    polarity=st.sampled_from(["light-on-dark", "light-on-dark", "dark-on-light", "none"]),
    background=st.sampled_from([(-1.0, 0.0, 1.0), (0.2, 0.2, 0.2), (-0.5, -1.0, -1.0)]),
    resize=RESIZES,
    invert=st.sampled_from(["auto", "auto", True, False]),
)
def test_a_row_is_what_the_contract_says(
    shape: Any,
    target: Any,
    bands: int,
    seed: int,
    is_coarse: bool,
    alpha: int | None,
    channels: int,
    polarity: str,
    background: Any,
    resize: Resize,
    invert: Any,
) -> None:
    pixels = make.noise(*shape, bands, seed=seed)
    if is_coarse:
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
    if alpha is not None and bands in (2, 4):
        pixels[..., -1] = alpha
    card = make.card((channels, *(target or shape)), background[:channels], polarity)
    found = prepare(
        picture(pixels.squeeze(-1) if bands == 1 else pixels), card, resize=resize, invert=invert
    )
    levels, inverted = expected(pixels, card, resize, invert)
    assert found.row.shape == card.shape
    assert found.row.dtype == np.float32
    assert found.row.flags.c_contiguous
    assert found.inverted is inverted
    np.testing.assert_array_equal(to_uint8(found.row, card), levels)


@given(shape=SIDES, target=SIDES, orientation=st.integers(1, 8), resize=RESIZES)
def test_a_mask_takes_the_pictures_turn_and_resize_or_has_the_models_size(
    shape: Any, target: Any, orientation: int, resize: Resize
) -> None:
    """White regenerates, and black, what is transparent and the letterbox keep. Its own turn is
    ignored.
    """
    card = make.card((1, *target))
    pixels = make.noise(*shape)
    turned = make.png(
        pixels[..., None], make.GREY, 8, before=make.chunk(b"eXIf", make.exif(orientation))
    )
    subject = decode_picture(turned)
    own = make.noise(*target)
    row = placed(subject.image, target[::-1], resize, 0, Image.Resampling.NEAREST)
    masks = [(turned, row), (make.save(pixels), row)]
    if target != shape:
        masks.append((make.save(np.dstack((np.full_like(own, 255), own))), own))
    for mask, levels in masks:
        opened = to_mask(ImageBytes("mask", mask).open(make.LIMITS))
        kept = keep_mask(opened, subject, card, resize=resize, field="mask")
        np.testing.assert_array_equal(kept, (levels < 128)[None], strict=True)
