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
from service.images.prepare import Mask, Prepared, Resize, keep_mask, prepare, to_mask, to_rows
from tests.helpers import pictures as make
from tests.helpers.pictures import decode_picture

GREY = make.card()
COLOUR = make.card((3, 8, 8), polarity="none")


def picture(pixels: NDArray[np.uint8] | Image.Image) -> Picture:
    return decode_picture(make.save(pixels), make.LIMITS, field="image")


def levels(prepared: Prepared, card: ModelCard) -> NDArray[np.uint8]:
    return to_uint8(prepared.row, card)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0), (-0.3, 2.7), (0.0, 255.0), (-1000.0, 0.001)])
def test_every_level_survives_the_round_trip(bounds: tuple[float, float]) -> None:
    card = make.card((1, 16, 16), bounds=bounds)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    rows = to_rows(pixels, card)
    assert rows.dtype == np.float32
    assert rows.shape == (1, 1, 16, 16)
    assert np.array_equal(rows.ravel(), np.float32(bounds[0] + np.arange(256.0) * (bounds[1] - bounds[0]) / 255))
    assert np.array_equal(to_uint8(rows, card), pixels)


@given(arrays(np.uint8, (6, 5, 3)))
def test_luma_and_chroma_make_the_image_again(pixels: NDArray[np.uint8]) -> None:
    card = make.card((1, 6, 5)).model_copy(update={"color": "luma"})
    prepared = prepare(picture(pixels), card, invert=False)
    made = to_uint8(with_chroma(prepared.row, prepared.chroma), card)
    np.testing.assert_array_equal(made.reshape(6, 5, -1) + 0 * pixels, pixels)
    luma = np.asarray(Image.fromarray(pixels).convert("YCbCr"), int)[..., 0]
    assert np.abs(levels(prepared, card) - luma).max() <= 1


@pytest.mark.parametrize(
    ("low", "high", "numbers", "levels"),
    [
        (0.0, 255.0, [0.5, 1.5, 2.5, 254.5, -3.0, 300.0, np.inf, -np.inf], [0, 2, 2, 254, 0, 255, 255, 0]),
        (-1.0, 1.0, [-(2.0**-30), 0.0, 2.0**-30], [127, 128, 128]),  # 127.5 is the tie, its neighbours are not
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
    prepared = prepare(picture(pixels), card, resize=resize, invert=False)
    assert (prepared.row.shape, prepared.inverted) == (card.shape, False)
    assert prepared.row.dtype == np.float32
    assert prepared.row.flags.c_contiguous
    assert np.array_equal(levels(prepared, card), pixels)


@pytest.mark.parametrize("bands", [3, 4])
def test_grey_models_take_luma(bands: int) -> None:
    """… of colours that have been composited on the background before."""
    pixels = make.noise(28, 28, bands)
    alpha = pixels[..., 3:] / 255 if bands == 4 else 1.0
    colours = np.rint(pixels[..., :3] * alpha + 128 * (1 - np.asarray(alpha)))
    card = make.card(background=(0.0,))
    got = levels(prepare(picture(pixels), card, invert=False), card)
    assert np.abs(got - colours @ np.array([0.299, 0.587, 0.114])).max() < 0.51  # ITU-R BT.601


def test_colour_models_repeat_grey() -> None:
    pixels = make.noise(8, 8)
    got = levels(prepare(picture(pixels), COLOUR), COLOUR)
    assert np.array_equal(got, np.repeat(pixels[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("background", [(-1.0, 0.0, 1.0), (0.2, 0.2, 0.2)])
def test_alpha_is_composited_on_the_background(mode: str, background: tuple[float, ...]) -> None:
    card = make.card((3, 8, 8), background=background, polarity="none")
    pixels = make.noise(8, 8, len(mode))
    pixels[0, 0] = 255, *[7] * (len(mode) - 2), 0  # a hidden colour must not shine through
    colours, alpha = pixels[..., :-1].astype(float), pixels[..., -1:] / 255.0
    fill = np.rint((np.array(background) + 1) * 255 / 2)
    expected = np.rint(colours * alpha + fill * (1 - alpha))
    got = levels(prepare(picture(pixels), card), card)
    assert np.array_equal(got, expected)
    assert got[0, 0].tolist() == fill.tolist()


def ringed(ring: int, inside: int, size: int = 28) -> NDArray[np.uint8]:
    pixels = np.full((size, size), ring, dtype=np.uint8)
    pixels[1:-1, 1:-1] = inside
    return pixels


@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.integers(0, 2**32 - 1), st.sampled_from([28, 1]))
def test_auto_inverts_pictures_whose_outermost_ring_is_light(shape: tuple[int, int], seed: int, side: int) -> None:
    """Every pixel of the ring counts once, also in an image of the model's size, which is judged with others."""
    pixels = np.where(make.noise(*shape, seed=seed) > 127, 255, 0).astype(np.uint8)
    ring = np.ones(shape, dtype=np.bool_)
    ring[1:-1, 1:-1] = False
    card = make.card((1, *(shape if side == 1 else (side, side))))
    prepared = prepare(picture(pixels), card, resize="stretch")
    assert prepared.inverted is bool(pixels[ring].mean() > 127.5)
    assert side != 1 or np.array_equal(levels(prepared, card), 255 - pixels if prepared.inverted else pixels)


@pytest.mark.parametrize("polarity", ["none", "dark-on-light", "light-on-dark"])
@pytest.mark.parametrize("ring", [0, 255])
def test_invert_can_be_said_and_auto_judges_the_ring_before_resizing(ring: int, polarity: str) -> None:
    card, pixels = make.card(polarity=polarity), ringed(ring, 255 - ring)
    for invert in (True, False):
        prepared = prepare(picture(pixels), card, invert=invert)
        assert prepared.inverted is invert
        assert np.array_equal(levels(prepared, card), 255 - pixels if invert else pixels)
    for auto in (pixels, np.zeros((28, 28, 2), dtype=np.uint8)):
        assert polarity == "light-on-dark" or not prepare(picture(auto), card).inverted
    large = ringed(255, 0, size=280)  # 10 to 1: the ring vanishes in what the model sees
    assert prepare(picture(large), card).inverted == (polarity == "light-on-dark")


def inked(ink: int, hidden: int = 0, alpha: int = 255, bands: int = 2) -> NDArray[np.uint8]:
    """A cross of ink on transparent paper."""
    pixels = np.full((28, 28, bands), hidden, dtype=np.uint8)
    pixels[..., -1] = 0
    pixels[12:16, 4:24] = pixels[4:24, 12:16] = [ink] * (bands - 1) + [alpha]
    return pixels


@pytest.mark.parametrize(
    ("pixels", "inverted", "centre"),
    [
        *((inked(20, hidden, bands=bands), True, 255 - 20) for hidden in (0, 255) for bands in (2, 4)),
        (inked(200), False, 200),
        (np.dstack((ringed(0, 40), ringed(255, 255))), False, 40),  # alpha, but nothing transparent
        (np.zeros((28, 28, 4), dtype=np.uint8), False, 0),  # nothing visible
    ],
)
def test_dark_ink_on_transparent_paper_becomes_light_on_dark(
    pixels: NDArray[np.uint8], inverted: bool, centre: int
) -> None:
    prepared = prepare(picture(pixels), GREY)
    got = levels(prepared, GREY)
    assert (prepared.inverted, got[0, 0], got[14, 14]) == (inverted, 0, centre)


def extent(prepared: Prepared, card: ModelCard) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not background (level 0)."""
    rows, columns = (np.flatnonzero(levels(prepared, card).any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (56, 28, (0, 7, 28, 21)),
        (28, 25, (0, 1, 28, 26)),  # 3 rows left over: 1 above, 2 below
        (1000, 1, (0, 13, 28, 14)),
        (1, 1000, (13, 0, 14, 28)),
        (56, 25, (0, 8, 28, 20)),  # 12.5 rows: ties to even, as Python rounds
    ],
)
def test_fit_letterboxes_in_the_middle(width: int, height: int, box: tuple[int, int, int, int]) -> None:
    white = np.full((height, width), 255, dtype=np.uint8)
    assert extent(prepare(picture(white), GREY, invert=False), GREY) == box


def test_the_letterbox_is_background_also_when_inverted() -> None:
    card = make.card(background=(-0.5,))
    prepared = prepare(picture(np.full((14, 28), 255, dtype=np.uint8)), card)
    assert prepared.inverted
    assert levels(prepared, card)[:, 0].tolist() == [64] * 7 + [0] * 14 + [64] * 7
    card = make.card((3, 8, 8), background=(-1.0, 0.0, 1.0), polarity="none")
    got = levels(prepare(picture(np.zeros((4, 8, 3), dtype=np.uint8)), card), card)
    assert got[0, 0].tolist() == [0, 128, 255]
    assert not got[2:6].any()


@pytest.mark.parametrize(("height", "width", "top", "left"), [(28, 41, 0, 6), (41, 28, 6, 0), (28, 40, 0, 6)])
def test_without_a_change_of_scale_every_pixel_is_kept(height: int, width: int, top: int, left: int) -> None:
    pixels = make.noise(height, width)
    cut = levels(prepare(picture(pixels), GREY, resize="crop", invert=False), GREY)
    assert np.array_equal(cut, pixels[top : top + 28, left : left + 28])


RESIZED = pytest.mark.parametrize(
    ("resize", "columns", "rows"),
    [("fit", slice(0, 112), 14), ("crop", slice(28, 84), 28), ("stretch", slice(0, 112), 28)],
)
"""What of 56×112 pixels is used, and how many of the model's 28 rows it fills."""


@RESIZED
def test_resizing_is_lanczos_in_8_bit(resize: Resize, columns: slice, rows: int) -> None:
    pixels = make.noise(56, 112)
    if resize == "crop":  # Lanczos would look beyond the cut
        pixels[:, :28], pixels[:, 84:] = pixels[:, 28:29], pixels[:, 83:84]
    small = Image.fromarray(pixels[:, columns]).resize((28, rows), Image.Resampling.LANCZOS)
    edge = (28 - rows) // 2
    got = levels(prepare(picture(pixels), GREY, resize=resize, invert=False), GREY)
    assert np.array_equal(got[edge : edge + rows], np.asarray(small))


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    resize=st.sampled_from(["fit", "crop", "stretch"]),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_any_picture_fits_any_model(width: int, height: int, resize: Resize, target: tuple[int, int]) -> None:
    card = make.card((1, *target))
    white = Picture(Image.new("L", (width, height), 255), (width, height))
    prepared = prepare(white, card, resize=resize, invert=False)
    assert prepared.row.shape == card.shape
    got = levels(prepared, card)
    if resize != "fit":
        assert (got == 255).all()
    else:
        left, top, right, bottom = extent(prepared, card)
        assert 0 <= target[1] - right - left <= 1
        assert 0 <= target[0] - bottom - top <= 1
        tall = width * target[0] < height * target[1]
        assert (bottom - top if tall else right - left) == target[0 if tall else 1]


def opened_mask(data: bytes) -> Mask:
    return to_mask(make.THREAD, ImageBytes("mask", data).open(make.THREAD, make.LIMITS))


def kept(
    mask: NDArray[np.uint8], subject: Picture, card: ModelCard = GREY, resize: Resize = "fit", **options: Any
) -> NDArray[np.bool_]:
    decoded = opened_mask(make.save(mask, **options))
    return keep_mask(decoded, subject, card, resize=resize, field="mask")


@pytest.mark.parametrize("resize", ["fit", "crop", "stretch"])
def test_a_mask_of_the_models_size_is_used_as_it_is(resize: Resize) -> None:
    """White regenerates and black keeps, and so does what is transparent."""
    mask, subject = make.noise(28, 28), picture(make.noise(50, 90))
    keep = kept(mask, subject, resize=resize)
    np.testing.assert_array_equal(keep, (mask < 128)[None], strict=True)
    assert np.array_equal(kept(np.dstack((np.full_like(mask, 255), mask)), subject, resize=resize), keep)


@RESIZED
def test_a_mask_takes_the_pictures_resize_with_nearest_neighbour(resize: Resize, columns: slice, rows: int) -> None:
    """… and regenerates nothing of the letterbox."""
    mask = np.where(make.noise(56, 112) > 127, 255, 0).astype(np.uint8)
    small = Image.fromarray(mask[:, columns]).resize((28, rows), Image.Resampling.NEAREST)
    keep = kept(mask, picture(make.noise(56, 112)), resize=resize)[0]
    edge = (28 - rows) // 2
    assert np.array_equal(keep[edge : edge + rows], np.asarray(small) < 128)
    assert np.delete(keep, slice(edge, edge + rows), axis=0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_takes_the_pictures_turn(orientation: int) -> None:
    pixels = np.where(make.noise(14, 28) > 127, 255, 0).astype(np.uint8)
    block = make.chunk(b"eXIf", make.exif(orientation))
    subject = decode_picture(make.png(pixels[..., None], make.GREY, 8, before=block), make.LIMITS, field="image")
    row = levels(prepare(subject, GREY, invert=False), GREY)
    assert np.array_equal(kept(pixels, subject)[0], row < 128)
    marked = opened_mask(make.png(pixels[..., None], make.GREY, 8, before=block))
    assert np.array_equal(keep_mask(marked, subject, GREY, field="mask")[0], row < 128)  # not turned twice
