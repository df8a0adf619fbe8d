from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from service.artifact.card import ModelCard
from service.domain.errors import InvalidContent
from service.images.decode import Picture, open_image
from service.images.encode import to_uint8
from service.images.prepare import Prepared, Resize, keep_mask, prepare, to_mask, to_rows
from tests.helpers import pictures as make
from tests.helpers.pictures import decode_picture

GREY = make.card()
COLOUR = make.card((3, 8, 8), polarity="none")


def picture(pixels: NDArray[np.uint8] | Image.Image) -> Picture:
    return decode_picture(make.save(pixels), make.LIMITS, field="image")


def levels(prepared: Prepared, card: ModelCard) -> NDArray[np.uint8]:
    return to_uint8(prepared.row, card)


# --- range -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0), (-0.3, 2.7), (0.0, 255.0), (-1000.0, 0.001)])
def test_every_level_survives_the_round_trip(bounds: tuple[float, float]) -> None:
    card = make.card((1, 16, 16), bounds=bounds)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    rows = to_rows(pixels, card)
    assert rows.dtype == np.float32
    assert rows.shape == (1, 1, 16, 16)
    assert np.array_equal(rows.ravel(), np.float32(bounds[0] + np.arange(256.0) * (bounds[1] - bounds[0]) / 255))
    assert np.array_equal(to_uint8(rows, card), pixels)


def test_back_to_levels_rounds_ties_to_even_and_clips() -> None:
    card = make.card((1, 1, 8), bounds=(0.0, 255.0))
    rows = np.array([0.5, 1.5, 2.5, 254.5, -3.0, 300.0, np.inf, -np.inf], dtype=np.float32).reshape(1, 1, 1, 8)
    assert to_uint8(rows, card).tolist() == [[[0, 2, 2, 254, 0, 255, 255, 0]]]


def test_back_to_levels_is_not_fooled_by_single_precision() -> None:
    card = make.card((1, 1, 3))
    rows = np.array([-(2.0**-30), 0.0, 2.0**-30], dtype=np.float32).reshape(1, 1, 1, 3)
    assert to_uint8(rows, card).tolist() == [[[127, 128, 128]]]  # 127.5 is the tie, its neighbours are not


def test_colour_rows_keep_their_channels() -> None:
    pixels = make.noise(2, 8, 8, 3)
    rows = to_rows(pixels, COLOUR)
    assert rows.shape == (2, 3, 8, 8)
    assert rows.flags.c_contiguous
    assert np.array_equal(to_uint8(rows, COLOUR), pixels)


# --- nothing to do ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["fit", "crop", "stretch"])
@pytest.mark.parametrize(("card", "shape"), [(GREY, (28, 28)), (COLOUR, (8, 8, 3))])
def test_a_picture_of_the_models_size_is_untouched(card: ModelCard, shape: Any, resize: Resize) -> None:
    pixels = make.noise(*shape)
    prepared = prepare(picture(pixels), card, resize=resize, invert=False)
    assert (prepared.row.shape, prepared.inverted) == (card.shape, False)
    assert prepared.row.dtype == np.float32
    assert prepared.row.flags.c_contiguous
    assert np.array_equal(levels(prepared, card), pixels)


# --- grey, colour, alpha ---------------------------------------------------------------------------------------------


def test_grey_models_take_luma() -> None:
    pixels = make.noise(28, 28, 3)
    got = levels(prepare(picture(pixels), GREY, invert=False), GREY)
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(got - luma).max() < 0.51


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


def test_alpha_is_composited_before_colours_become_grey() -> None:
    card = make.card((1, 1, 1), background=(0.0,), polarity="none")
    got = levels(prepare(picture(np.array([[[255, 0, 0, 128]]], dtype=np.uint8)), card), card)
    blend = np.rint((np.array([255, 0, 0]) * 128 + 128 * 127) / 255)
    assert abs(int(got[0, 0]) - blend @ np.array([0.299, 0.587, 0.114])) < 0.51


# --- invert ----------------------------------------------------------------------------------------------------------


def ringed(ring: int, inside: int, size: int = 28) -> NDArray[np.uint8]:
    pixels = np.full((size, size), ring, dtype=np.uint8)
    pixels[1:-1, 1:-1] = inside
    return pixels


@pytest.mark.parametrize(
    ("ring", "inside", "inverted"), [(128, 0, True), (127, 255, False), (255, 0, True), (0, 255, False)]
)
def test_auto_inverts_pictures_whose_outermost_ring_is_light(ring: int, inside: int, inverted: bool) -> None:
    pixels = ringed(ring, inside)
    prepared = prepare(picture(pixels), GREY)
    assert prepared.inverted is inverted
    assert np.array_equal(levels(prepared, GREY), 255 - pixels if inverted else pixels)


@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.integers(0, 2**32 - 1), st.sampled_from([28, 1]))
def test_every_pixel_of_the_ring_counts_once(shape: tuple[int, int], seed: int, side: int) -> None:
    """Also in an image of the model's size, whose ring is judged together with those of others."""
    pixels = np.where(make.noise(*shape, seed=seed) > 127, 255, 0).astype(np.uint8)
    ring = np.ones(shape, dtype=np.bool_)
    ring[1:-1, 1:-1] = False
    card = make.card((1, *(shape if side == 1 else (side, side))))
    assert prepare(picture(pixels), card, resize="stretch").inverted is bool(pixels[ring].mean() > 127.5)


def test_the_ring_is_judged_before_resizing() -> None:
    pixels = np.zeros((280, 280), dtype=np.uint8)  # 10 to 1: the ring vanishes in what the model sees
    pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1] = 255, 255, 255, 255
    assert prepare(picture(pixels), GREY).inverted


@pytest.mark.parametrize("polarity", ["none", "dark-on-light"])
def test_auto_leaves_other_models_alone(polarity: str) -> None:
    card = make.card(polarity=polarity)
    assert not prepare(picture(ringed(255, 0)), card).inverted
    ink = np.zeros((28, 28, 2), dtype=np.uint8)
    assert not prepare(picture(ink), card).inverted


@pytest.mark.parametrize("polarity", ["none", "light-on-dark"])
@pytest.mark.parametrize("ring", [0, 255])
def test_invert_can_be_said(ring: int, polarity: str) -> None:
    card, pixels = make.card(polarity=polarity), ringed(ring, 255 - ring)
    always, never = (prepare(picture(pixels), card, invert=invert) for invert in (True, False))
    assert (always.inverted, never.inverted) == (True, False)
    assert np.array_equal(levels(always, card), 255 - pixels)
    assert np.array_equal(levels(never, card), pixels)


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
        (
            np.dstack((ringed(0, 40), np.full((28, 28), 255, dtype=np.uint8))),
            False,
            40,
        ),  # alpha, but nothing transparent
        (np.zeros((28, 28, 4), dtype=np.uint8), False, 0),  # nothing visible
    ],
)
def test_dark_ink_on_transparent_paper_becomes_light_on_dark(
    pixels: NDArray[np.uint8], inverted: bool, centre: int
) -> None:
    prepared = prepare(picture(pixels), GREY)
    got = levels(prepared, GREY)
    assert (prepared.inverted, got[0, 0], got[14, 14]) == (inverted, 0, centre)


# --- resize ----------------------------------------------------------------------------------------------------------


def extent(prepared: Prepared, card: ModelCard) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not background (level 0)."""
    rows, columns = (np.flatnonzero(levels(prepared, card).any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (56, 28, (0, 7, 28, 21)),
        (28, 56, (7, 0, 21, 28)),
        (28, 25, (0, 1, 28, 26)),  # 3 rows left over: 1 above, 2 below
        (25, 28, (1, 0, 26, 28)),
        (10, 10, (0, 0, 28, 28)),
        (1000, 1, (0, 13, 28, 14)),
        (1, 1000, (13, 0, 14, 28)),
        (56, 25, (0, 8, 28, 20)),  # 12.5 rows: ties to even, as Python rounds
        (56, 27, (0, 7, 28, 21)),  # 13.5 rows
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


def test_colour_letterbox() -> None:
    card = make.card((3, 8, 8), background=(-1.0, 0.0, 1.0), polarity="none")
    got = levels(prepare(picture(np.zeros((4, 8, 3), dtype=np.uint8)), card), card)
    assert got[0, 0].tolist() == [0, 128, 255]
    assert not got[2:6].any()


@pytest.mark.parametrize(("height", "width", "top", "left"), [(28, 41, 0, 6), (41, 28, 6, 0), (28, 40, 0, 6)])
def test_without_a_change_of_scale_every_pixel_is_kept(height: int, width: int, top: int, left: int) -> None:
    pixels = make.noise(height, width)
    cut = levels(prepare(picture(pixels), GREY, resize="crop", invert=False), GREY)
    assert np.array_equal(cut, pixels[top : top + 28, left : left + 28])
    pixels = make.noise(28, 25)
    assert np.array_equal(levels(prepare(picture(pixels), GREY, invert=False), GREY)[:, 1:26], pixels)


def test_crop_scales_what_it_cuts_and_stretch_ignores_proportions() -> None:
    pixels = np.zeros((56, 112), dtype=np.uint8)
    pixels[:, 28:84] = 200
    assert (levels(prepare(picture(pixels), GREY, resize="crop"), GREY) == 200).all()
    narrow = np.full((3, 90), 77, dtype=np.uint8)
    assert (levels(prepare(picture(narrow), GREY, resize="stretch"), GREY) == 77).all()


def test_resizing_is_lanczos_in_8_bit() -> None:
    pixels = make.noise(61, 61)
    expected = np.asarray(Image.fromarray(pixels).resize((28, 28), Image.Resampling.LANCZOS))
    assert np.array_equal(levels(prepare(picture(pixels), GREY, invert=False), GREY), expected)


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
        assert (right - left, bottom - top)[width * target[0] < height * target[1]] == (target[1], target[0])[
            width * target[0] < height * target[1]
        ]


# --- masks -----------------------------------------------------------------------------------------------------------


def kept(
    mask: NDArray[np.uint8], subject: Picture, card: ModelCard = GREY, resize: Resize = "fit", **options: Any
) -> NDArray[np.bool_]:
    decoded = to_mask(open_image(make.save(mask, **options), make.LIMITS, field="mask"))
    return keep_mask(decoded, subject, card, resize=resize, field="mask")


def test_white_regenerates_and_black_keeps() -> None:
    mask = np.zeros((28, 28), dtype=np.uint8)
    mask[0, :4] = 127, 128, 255, 1
    keep = kept(mask, picture(make.noise(28, 28)))
    assert keep.shape == (1, 28, 28)
    assert keep.dtype == np.bool_
    assert keep[0, 0, :4].tolist() == [True, False, False, True]
    assert keep[0, 1:].all()
    transparent = np.dstack((np.full((28, 28), 255, dtype=np.uint8), mask))
    assert np.array_equal(kept(transparent, picture(make.noise(28, 28))), keep)


@pytest.mark.parametrize("resize", ["fit", "crop", "stretch"])
def test_a_mask_of_the_models_size_is_used_as_it_is(resize: Resize) -> None:
    mask = make.noise(28, 28)
    assert np.array_equal(kept(mask, picture(make.noise(50, 90)), resize=resize)[0], mask < 128)


def test_a_mask_of_the_pictures_size_is_letterboxed_with_it() -> None:
    keep = kept(np.full((28, 56), 255, dtype=np.uint8), picture(make.noise(28, 56)))[0]
    assert keep.all(axis=1).tolist() == [True] * 7 + [False] * 14 + [True] * 7
    assert not keep[7:21].any()


@pytest.mark.parametrize(("resize", "columns"), [("crop", slice(28, 84)), ("stretch", slice(0, 112))])
def test_a_mask_takes_the_pictures_resize_with_nearest_neighbour(resize: Resize, columns: slice) -> None:
    mask = np.where(make.noise(56, 112) > 127, 255, 0).astype(np.uint8)
    expected = np.asarray(Image.fromarray(mask[:, columns]).resize((28, 28), Image.Resampling.NEAREST)) < 128
    assert np.array_equal(kept(mask, picture(make.noise(56, 112)), resize=resize)[0], expected)


def test_a_mask_lies_on_the_pixels_it_was_drawn_on() -> None:
    pixels = np.zeros((90, 60), dtype=np.uint8)
    pixels[30:60, 20:50] = 255  # the mask is the picture itself
    subject = picture(pixels)
    for resize in ("fit", "crop", "stretch"):
        row = levels(prepare(subject, GREY, resize=resize, invert=False), GREY)
        keep = kept(pixels, subject, resize=resize)[0]
        assert (keep != (row < 128)).sum() <= 8  # Lanczos may round a border pixel the other way


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_takes_the_pictures_turn(orientation: int) -> None:
    pixels = np.where(make.noise(14, 28) > 127, 255, 0).astype(np.uint8)
    block = make.chunk(b"eXIf", make.exif(orientation))
    subject = decode_picture(make.png(pixels[..., None], make.GREY, 8, before=block), make.LIMITS, field="image")
    row = levels(prepare(subject, GREY, invert=False), GREY)
    assert np.array_equal(kept(pixels, subject)[0], row < 128)
    marked = to_mask(open_image(make.png(pixels[..., None], make.GREY, 8, before=block), make.LIMITS, field="mask"))
    assert np.array_equal(keep_mask(marked, subject, GREY, field="mask")[0], row < 128)  # not turned twice


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(InvalidContent, match=r"mask: .*29×28.*40×30.*28×28") as caught:
        kept(make.noise(28, 29), picture(make.noise(30, 40)))
    assert caught.value.error_code == "mask_size"
