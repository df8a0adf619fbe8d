from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ImageSequence
from PIL.JpegImagePlugin import JpegImageFile

from service import images
from service.domain.errors import InvalidContent
from service.images import (
    AnimationFormat,
    PictureFormat,
    animate,
    check_sides,
    contact_sheet,
    encode,
)
from tests.helpers import pictures as make


@given(st.sampled_from(["png", "webp"]), st.integers(1, 40), st.integers(1, 300), st.booleans(), st.integers(1, 255))
def test_png_and_webp_are_lossless(form: PictureFormat, height: int, width: int, colour: bool, levels: int) -> None:
    pixels = make.noise(2 * height, width, *[3] * colour)[::2, ::-1] // levels * levels  # need not be contiguous
    image = make.opened(encode(pixels, form))
    assert (image.format, image.mode) == (form.upper(), "L" if form == "png" and not colour else "RGB")
    assert np.array_equal(np.asarray(image if colour else image.convert("L")), pixels)


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
        assert make.opened(encode(np.zeros((1, most), np.uint8), form)).size == (most, 1)
    if form == "webp":
        with pytest.raises(InvalidContent):
            animate(np.zeros((2, 1, most + 1), np.uint8), form, fps=5)


SIDES = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(st.integers(1, 64), SIDES, st.none() | st.integers(1, 70), st.integers(0, 3), st.booleans())
def test_a_contact_sheet_is_nearly_square_and_empty_cells_show_the_background(
    n: int, sides: tuple[int, int], columns: int | None, gap: int, colour: bool
) -> None:
    """… and so do the gaps, which lie between images only."""
    height, width = sides
    card = make.card((3 if colour else 1, height, width), background=(-1.0, 0.0, 1.0) if colour else (0.0,))
    pictures = make.noise(n, height, width, *[3] * colour)
    sheet = contact_sheet(pictures, card, columns=columns, gap=gap)
    across = min(columns or int(np.ceil(np.sqrt(n))), n)
    down = -(-n // across)
    assert images.sheet_size(n, card, columns=columns, gap=gap) == sheet.shape[1::-1]
    expected = np.empty((down * (height + gap) - gap, across * (width + gap) - gap, *[3] * colour), np.uint8)
    expected[...] = (0, 128, 255) if colour else 128
    for i in range(n):
        top, left = i // across * (height + gap), i % across * (width + gap)
        expected[top : top + height, left : left + width] = pictures[i]
    assert np.array_equal(sheet, expected)


def played(data: bytes) -> list[tuple[NDArray[np.uint8], float]]:
    """The frames in RGB, and how many milliseconds each is shown."""
    shown = ImageSequence.Iterator(make.opened(data))
    return [(np.asarray(frame.convert("RGB")), float(frame.info.get("duration", 0))) for frame in shown]


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("form", get_args(AnimationFormat))
def test_every_frame_is_shown_and_frame_times_add_up(form: AnimationFormat, colour: bool) -> None:
    frames = make.noise(10, 8, 8, *[3] * colour)
    for fps in (1, 12, 24, 30, 50):
        shown = played(animate(frames, form, fps=fps))
        times, tick = [time for _, time in shown], 10 if form == "gif" else 1
        assert abs(sum(times) - 10_000 / fps) <= tick / 2
        assert all(abs(time - 1000 / fps) <= tick for time in times)
    for (got, _), frame in zip(shown, frames, strict=True):
        assert np.array_equal(got, frame if colour else np.repeat(frame[..., None], 3, axis=2))
    many = np.stack([np.asarray(make.smooth(64, 64)), np.asarray(make.smooth(64, 64).rotate(90))])
    lost = np.abs(played(animate(many, form, fps=5))[1][0].astype(int) - many[1]).mean()
    assert 0 < lost < 8 if form == "gif" else lost == 0  # only GIF reduces colours


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
