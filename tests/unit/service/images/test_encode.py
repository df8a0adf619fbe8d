import zlib
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ImageSequence
from PIL.JpegImagePlugin import JpegImageFile

from service.domain.errors import InvalidContent
from service.images.encode import (
    AnimationFormat,
    PictureFormat,
    Resample,
    animate,
    check_sides,
    contact_sheet,
    encode,
    enlarge,
    sheet_size,
)
from tests.helpers import pictures as make

GREY, COLOUR = make.card(), make.card((3, 8, 8), background=(-1.0, 0.0, 1.0))
SHAPES = [(28, 28), (64, 64, 3), (1, 1), (1, 1, 3), (1, 300), (300, 1, 3), (5, 7, 3)]


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["png", "webp"])
def test_png_and_webp_are_lossless(form: PictureFormat, shape: tuple[int, ...]) -> None:
    pixels = make.noise(2 * shape[0], *shape[1:])[::2, ::-1]  # need not be contiguous
    image = make.opened(encode(pixels, form))
    assert image.format == form.upper()
    assert image.mode == ("L" if form == "png" and len(shape) == 2 else "RGB")
    if len(shape) == 2:
        image = image.convert("L")
    assert np.array_equal(np.asarray(image), pixels)


@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 2**32 - 1), st.integers(1, 255))
def test_any_png_decodes_to_its_pixels(height: int, width: int, colour: bool, seed: int, levels: int) -> None:
    shape = (height, width, 3) if colour else (height, width)
    pixels = make.noise(*shape, seed=seed) // levels * levels
    assert np.array_equal(np.asarray(make.opened(encode(pixels, "png"))), pixels)


def test_png_is_well_formed() -> None:
    data = encode(make.noise(9, 9), "png")
    kinds, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + size]
        assert int.from_bytes(data[at + 8 + size : at + 12 + size], "big") == zlib.crc32(body)
        kinds.append(body[:4])
        at += 12 + size
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]
    make.opened(data).verify()


def test_runs_and_slopes_are_compressed() -> None:
    assert len(encode(np.zeros((224, 224), dtype=np.uint8), "png")) < 1000
    assert len(encode(np.asarray(make.smooth(64, 64)), "png")) < 64 * 64 * 3 / 3


def test_jpeg_is_of_high_quality_and_keeps_colours_at_full_resolution() -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, 1::2] = 255, 0, 0  # red lines one pixel apart: halved chroma would smear them
    image = make.opened(encode(pixels, "jpeg"))
    assert np.abs(np.asarray(image).astype(int) - pixels).max() < 40
    assert isinstance(image, JpegImageFile)
    assert image.layer[0][1:3] == (1, 1)
    assert image.quantization[0][0] == 2
    assert make.opened(encode(make.noise(9, 9), "jpeg")).mode == "L"


@pytest.mark.parametrize("form", get_args(PictureFormat))
def test_pictures_carry_no_metadata_and_are_reproducible(form: PictureFormat) -> None:
    pixels = make.noise(28, 28)
    data = encode(pixels, form)
    assert data == encode(pixels.copy(), form)
    info = make.opened(data).info
    assert not set(info) & {"exif", "icc_profile", "xmp", "comment", "Software", "dpi"}


@pytest.mark.parametrize(
    ("form", "most"), [("png", 2**31 - 1), ("apng", 2**31 - 1), ("webp", 16_383), ("jpeg", 65_500), ("gif", 65_535)]
)
def test_sides_beyond_the_format_are_refused(form: Any, most: int) -> None:
    check_sides(form, most, most)
    for sides in ((most + 1, 1), (1, most + 1)):
        with pytest.raises(InvalidContent, match=f"{form}.*{most}") as caught:
            check_sides(form, *sides)
        assert caught.value.error_code == "image_too_large"
    if form in ("webp", "jpeg"):
        longest, longer = (np.zeros((1, side), dtype=np.uint8) for side in (most, most + 1))
        assert make.opened(encode(longest, form)).size == (most, 1)
        with pytest.raises(InvalidContent):
            encode(longer, form)


# --- sheets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (4, 2, 2), (5, 3, 2), (9, 3, 3), (10, 4, 3), (64, 8, 8)]
)
def test_a_contact_sheet_is_nearly_square(n: int, columns: int, rows: int) -> None:
    assert contact_sheet(make.noise(n, 28, 28), GREY).shape == (rows * 28, columns * 28)


@given(
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 5),
    st.none() | st.integers(1, 15),
    st.integers(0, 3),
    st.booleans(),
)
def test_empty_cells_show_the_background(
    n: int, height: int, width: int, columns: int | None, gap: int, colour: bool
) -> None:
    """… and so do the gaps, which lie between images only."""
    card = make.card((3 if colour else 1, height, width), background=(-1.0, 0.0, 1.0) if colour else (0.0,))
    pictures = make.noise(n, height, width, *[3] * colour)
    sheet = contact_sheet(pictures, card, columns=columns, gap=gap)
    across = min(columns or int(np.ceil(np.sqrt(n))), n)
    down = -(-n // across)
    assert sheet_size(n, card, columns=columns, gap=gap) == sheet.shape[1::-1]
    expected = np.empty((down * (height + gap) - gap, across * (width + gap) - gap, *[3] * colour), np.uint8)
    expected[...] = (0, 128, 255) if colour else 128
    for i in range(n):
        top, left = i // across * (height + gap), i % across * (width + gap)
        expected[top : top + height, left : left + width] = pictures[i]
    assert np.array_equal(sheet, expected)


# --- enlarged --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5), (5, 3, 3)])
@pytest.mark.parametrize("scale", [2, 7, 32])
def test_nearest_repeats_every_pixel_as_a_square(shape: tuple[int, ...], scale: int) -> None:
    picture = make.noise(*shape)
    large = enlarge(picture, scale, "nearest")
    assert large.shape == (shape[0] * scale, shape[1] * scale, *shape[2:])
    for dy, dx in ((0, 0), (scale - 1, scale - 1), (0, scale - 1)):
        assert np.array_equal(large[dy::scale, dx::scale], picture)
    assert np.array_equal(np.asarray(make.opened(encode(large, "png"))), large)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_smooth_has_levels_between_those_of_the_picture(channels: tuple[int, ...]) -> None:
    picture = np.zeros((8, 8, *channels), dtype=np.uint8)
    picture[:, 4:] = 200
    large = enlarge(picture, 8, "smooth").astype(int)
    assert large.shape == (64, 64, *channels)
    assert (large[:, :8] == 0).all()
    assert (large[:, -8:] == 200).all()
    assert len(np.unique(large)) > 8
    assert np.abs(np.diff(large, axis=1)).max() < 60


@pytest.mark.parametrize("resample", ["nearest", "smooth"])
def test_scale_one_is_the_picture(resample: Resample) -> None:
    picture = make.noise(4, 6)
    assert np.array_equal(enlarge(picture, 1, resample), picture)


# --- animations ------------------------------------------------------------------------------------------------------


def played(data: bytes) -> list[tuple[NDArray[np.uint8], float]]:
    frames = []
    for frame in ImageSequence.Iterator(make.opened(data)):
        pixels = np.asarray(frame.convert("RGB"))
        frames.append((pixels, float(frame.info.get("duration", 0))))
    return frames


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("form", get_args(AnimationFormat))
def test_animations_show_every_frame(form: AnimationFormat, colour: bool) -> None:
    frames = make.noise(9, 8, 8, 3) if colour else make.noise(9, 28, 28)
    shown = played(animate(frames, form, fps=12))
    assert len(shown) == 9
    for (got, _), frame in zip(shown, frames, strict=True):
        assert np.array_equal(got, frame if colour else np.repeat(frame[..., None], 3, axis=2))


@pytest.mark.parametrize("form", get_args(AnimationFormat))
@pytest.mark.parametrize("fps", [1, 12, 24, 30, 50])
def test_frame_times_add_up(form: AnimationFormat, fps: int) -> None:
    times = [time for _, time in played(animate(make.noise(10, 4, 4), form, fps=fps))]
    tick = 10 if form == "gif" else 1
    assert abs(sum(times) - 10_000 / fps) <= tick / 2
    assert all(abs(time - 1000 / fps) <= tick for time in times)


@pytest.mark.parametrize("form", get_args(AnimationFormat))
def test_equal_neighbours_add_their_times(form: AnimationFormat) -> None:
    a, b = make.noise(2, 8, 8)
    shown = played(animate(np.stack((a, b, b, a)), form, fps=10))
    assert sum(time for _, time in shown) == 400
    assert [int(pixels[0, 0, 0]) for pixels, _ in shown] == [int(x) for x in (a[0, 0], b[0, 0], a[0, 0])]
    ((still, _),) = played(animate(np.stack((a, a)), form, fps=5))
    assert np.array_equal(still[..., 0], a)


@pytest.mark.parametrize("form", get_args(AnimationFormat))
def test_animations_loop_or_stop(form: AnimationFormat) -> None:
    frames = make.noise(3, 8, 8)
    assert make.opened(animate(frames, form, fps=5)).info["loop"] == 0
    once = make.opened(animate(frames, form, fps=5, loop=False)).info
    assert once.get("loop", 1) == 1
    assert animate(frames, form, fps=5) == animate(frames, form, fps=5)


def test_gif_reduces_colours_and_webp_does_not() -> None:
    frames = np.stack([np.asarray(make.smooth(64, 64)), np.asarray(make.smooth(64, 64).rotate(90))])
    exact, reduced = (played(animate(frames, form, fps=5)) for form in ("webp", "gif"))
    assert np.array_equal(exact[1][0], frames[1])
    assert not np.array_equal(reduced[1][0], frames[1])
    assert np.abs(reduced[1][0].astype(int) - frames[1]).mean() < 8


def test_an_animation_too_wide_for_its_format_is_refused() -> None:
    with pytest.raises(InvalidContent):
        animate(np.zeros((2, 1, 16_384), dtype=np.uint8), "webp", fps=5)
