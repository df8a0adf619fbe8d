"""From images to rows, and back to levels."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from service.artifact.card import ModelCard
from service.domain.tasks import with_chroma
from service.images.decode import ImageBytes, Picture
from service.images.encode import to_uint8
from service.images.prepare import Mask, Resize, keep_mask, prepare, to_mask, to_rows
from tests.helpers import pictures as make
from tests.helpers.pictures import decode_picture

Levels = NDArray[np.uint8]
GREY = make.card()
COLOUR = make.card((3, 8, 8), polarity="none")


def picture(pixels: Levels) -> Picture:
    return decode_picture(make.save(pixels))


def prepared(pixels: Levels, card: ModelCard = GREY, **options: Any) -> tuple[Levels, bool]:
    """The row as levels, and whether it is inverted."""
    found = prepare(picture(pixels), card, **options)
    assert (found.row.shape, found.row.dtype, found.row.flags.c_contiguous) == (card.shape, np.float32, True)
    return to_uint8(found.row, card), found.inverted


def plain(pixels: Levels, card: ModelCard = GREY, resize: Resize = "fit") -> Levels:
    """The row of an image that is not inverted, as levels."""
    return prepared(pixels, card, resize=resize, invert=False)[0]


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-0.3, 2.7), (0.0, 255.0), (-1000.0, 0.001)])
def test_every_level_survives_the_round_trip(bounds: tuple[float, float]) -> None:
    card = make.card((1, 16, 16), bounds=bounds)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    rows = to_rows(pixels, card)
    expected = np.float32(bounds[0] + np.arange(256.0) * (bounds[1] - bounds[0]) / 255)
    np.testing.assert_array_equal(rows, expected.reshape(1, 1, 16, 16), strict=True)
    assert np.array_equal(to_uint8(rows, card), pixels)


@given(arrays(np.uint8, (6, 5, 3)))
def test_luma_and_chroma_make_the_image_again(pixels: Levels) -> None:
    card = make.card((1, 6, 5)).model_copy(update={"color": "luma"})
    found = prepare(picture(pixels), card, invert=False)
    made = to_uint8(with_chroma(found.row, found.chroma), card)
    np.testing.assert_array_equal(made.reshape(6, 5, -1) + 0 * pixels, pixels)
    luma = np.asarray(Image.fromarray(pixels).convert("YCbCr"), int)[..., 0]
    assert np.abs(to_uint8(found.row, card) - luma).max() <= 1


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


@pytest.mark.parametrize("resize", ["fit", "crop", "stretch"])
@pytest.mark.parametrize(("card", "shape"), [(GREY, (28, 28)), (COLOUR, (8, 8, 3))])
def test_a_picture_of_the_models_size_is_untouched(card: ModelCard, shape: Any, resize: Resize) -> None:
    pixels = make.noise(*shape)
    assert np.array_equal(plain(pixels, card, resize), pixels)


def composited(pixels: Levels, fill: Any) -> NDArray[np.float64]:
    alpha = pixels[..., -1:] / 255
    return np.rint(pixels[..., :-1] * alpha + np.asarray(fill) * (1 - alpha))


def test_grey_models_take_luma() -> None:
    """… of colours that have been composited on the background before."""
    pixels = make.noise(28, 28, 4)
    for each, colours in ((pixels, composited(pixels, 128)), (pixels[..., :3], pixels[..., :3])):
        luma = colours @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
        assert np.abs(plain(each, make.card(background=(0.0,))) - luma).max() < 0.51


def test_colour_models_repeat_grey() -> None:
    pixels = make.noise(8, 8)
    assert np.array_equal(plain(pixels, COLOUR), np.repeat(pixels[..., None], 3, axis=2))


@pytest.mark.parametrize("bands", [2, 4])
@pytest.mark.parametrize(("background", "fill"), [((-1.0, 0.0, 1.0), [0, 128, 255]), ((0.2,) * 3, [153] * 3)])
def test_alpha_is_composited_on_the_background(bands: int, background: Any, fill: list[int]) -> None:
    pixels = make.noise(8, 8, bands)
    pixels[0, 0, -1] = 0  # a hidden colour must not shine through
    got = plain(pixels, make.card((3, 8, 8), background=background, polarity="none"))
    assert np.array_equal(got, composited(pixels, fill))
    assert got[0, 0].tolist() == fill


@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.integers(0, 2**32 - 1), st.booleans())
def test_auto_inverts_pictures_whose_outermost_ring_is_light(shape: tuple[int, int], seed: int, fits: bool) -> None:
    """Every pixel of the ring counts once, also in an image of the model's size, which is judged with others."""
    pixels = np.where(make.noise(*shape, seed=seed) > 127, 255, 0).astype(np.uint8)
    ring = np.ones(shape, dtype=np.bool_)
    ring[1:-1, 1:-1] = False
    found, inverted = prepared(pixels, make.card((1, *shape)) if fits else GREY, resize="stretch")
    assert inverted == (pixels[ring].mean() > 127.5)
    assert not fits or np.array_equal(found, 255 - pixels if inverted else pixels)


def ringed(ring: int, inside: int, size: int = 28) -> Levels:
    return np.pad(np.full((size - 2, size - 2), inside, np.uint8), 1, constant_values=ring)


@pytest.mark.parametrize("polarity", ["none", "dark-on-light", "light-on-dark"])
def test_invert_can_be_said_and_auto_judges_the_ring_before_resizing(polarity: str) -> None:
    card, is_auto = make.card(polarity=polarity), polarity == "light-on-dark"
    for ring in (0, 255):
        pixels = ringed(ring, 255 - ring)
        assert np.array_equal(plain(pixels, card), pixels)
        assert np.array_equal(prepared(pixels, card, invert=True)[0], 255 - pixels)
    assert prepared(inked(20), card)[1] == is_auto
    # 10 to 1: the ring vanishes in what the model sees.
    assert prepared(ringed(255, 0, size=280), card)[1] == is_auto


def inked(ink: int, hidden: int = 0, bands: int = 2) -> Levels:
    """A cross of ink on transparent paper."""
    pixels = np.full((28, 28, bands), hidden, dtype=np.uint8)
    pixels[..., -1] = 0
    pixels[12:16, 4:24] = pixels[4:24, 12:16] = [ink] * (bands - 1) + [255]
    return pixels


@pytest.mark.parametrize(
    ("pixels", "inverted", "centre"),
    [
        *((inked(20, hidden, bands), True, 255 - 20) for hidden, bands in product((0, 255), (2, 4))),
        (inked(200), False, 200),
        (np.dstack((ringed(0, 40), ringed(255, 255))), False, 40),  # alpha, but nothing transparent
        (np.zeros((28, 28, 4), dtype=np.uint8), False, 0),  # nothing visible
    ],
)
def test_dark_ink_on_transparent_paper_becomes_light_on_dark(pixels: Levels, inverted: bool, centre: int) -> None:
    got, was_inverted = prepared(pixels)
    assert (was_inverted, got[0, 0], got[14, 14]) == (inverted, 0, centre)


def extent(levels: Levels) -> list[int]:
    """Top, bottom, left, right of what is not background (level 0)."""
    rows, columns = np.nonzero(levels)
    return [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (28, 25, [1, 26, 0, 28]),  # 3 rows left over: 1 above, 2 below
        (1000, 1, [13, 14, 0, 28]),
        (1, 1000, [0, 28, 13, 14]),
        (56, 25, [8, 20, 0, 28]),  # 12.5 rows: ties to even, as Python rounds
    ],
)
def test_fit_letterboxes_in_the_middle(width: int, height: int, box: list[int]) -> None:
    assert extent(plain(np.full((height, width), 255, dtype=np.uint8))) == box


def test_the_letterbox_is_background_also_when_inverted() -> None:
    got, inverted = prepared(np.full((14, 28), 255, dtype=np.uint8), make.card(background=(-0.5,)))
    assert inverted
    assert got[:, 0].tolist() == [64] * 7 + [0] * 14 + [64] * 7
    card = make.card((3, 8, 8), background=(-1.0, 0.0, 1.0), polarity="none")
    assert plain(np.zeros((4, 8, 3), dtype=np.uint8), card)[:3, 0].tolist() == [[0, 128, 255]] * 2 + [[0] * 3]


RESIZED = pytest.mark.parametrize(
    ("resize", "columns", "rows"),
    [("fit", slice(0, 112), 14), ("crop", slice(28, 84), 28), ("stretch", slice(0, 112), 28)],
)
"""What of 56×112 pixels is used, and how many of the model's 28 rows it fills."""


@RESIZED
def test_resizing_is_lanczos_in_8_bit(resize: Resize, columns: slice, rows: int) -> None:
    pixels = make.noise(56, 112)
    small = Image.fromarray(pixels[:, columns]).resize((28, rows), Image.Resampling.LANCZOS)
    edge = (28 - rows) // 2
    # Of a cut nothing beyond it is seen.
    assert np.array_equal(plain(pixels, resize=resize)[edge : edge + rows], np.asarray(small))


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    resize=st.sampled_from(["fit", "crop", "stretch"]),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_any_picture_fits_any_model(size: tuple[int, int], resize: Resize, target: tuple[int, int]) -> None:
    top, bottom, left, right = extent(plain(np.full(size, 255, dtype=np.uint8), make.card((1, *target)), resize))
    assert 0 <= target[0] - bottom - top <= 1
    assert 0 <= target[1] - right - left <= 1
    is_tall = size[1] * target[0] < size[0] * target[1]
    assert resize == "fit" or (bottom - top, right - left) == target
    assert bottom - top == target[0] if is_tall else right - left == target[1]


def opened_mask(data: bytes) -> Mask:
    return to_mask(make.THREAD, ImageBytes("mask", data).open(make.THREAD, make.LIMITS))


def kept(mask: Levels, subject: Picture, resize: Resize = "fit") -> NDArray[np.bool_]:
    return keep_mask(opened_mask(make.save(mask)), subject, GREY, resize=resize, field="mask")


@pytest.mark.parametrize("resize", ["fit", "crop", "stretch"])
def test_a_mask_of_the_models_size_is_used_as_it_is(resize: Resize) -> None:
    """White regenerates and black keeps, and so does what is transparent."""
    mask, subject = make.noise(28, 28), picture(make.noise(50, 90))
    for each in (mask, np.dstack((np.full_like(mask, 255), mask))):
        np.testing.assert_array_equal(kept(each, subject, resize), (mask < 128)[None], strict=True)


@RESIZED
def test_a_mask_takes_the_pictures_resize_with_nearest_neighbour(resize: Resize, columns: slice, rows: int) -> None:
    """… and regenerates nothing of the letterbox."""
    mask = make.noise(56, 112)
    small = Image.fromarray(mask[:, columns]).resize((28, rows), Image.Resampling.NEAREST)
    expected = np.pad(np.asarray(small), ((28 - rows) // 2, 0))[:, -28:]
    expected = np.pad(expected, ((0, 28 - len(expected)), (0, 0)))
    assert np.array_equal(kept(mask, picture(mask), resize)[0], expected < 128)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_takes_the_pictures_turn(orientation: int) -> None:
    pixels = np.where(make.noise(14, 28) > 127, 255, 0).astype(np.uint8)
    turned = make.png(pixels[..., None], make.GREY, 8, before=make.chunk(b"eXIf", make.exif(orientation)))
    subject = decode_picture(turned)
    row = to_uint8(prepare(subject, GREY, invert=False).row, GREY)
    for mask in (make.save(pixels), turned):  # not turned twice
        assert np.array_equal(keep_mask(opened_mask(mask), subject, GREY, field="mask")[0], row < 128)
