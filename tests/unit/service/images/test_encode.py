"""Encoded images and animations, sheets, base64 and .npy."""

import base64
import io
import re
import struct
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ImageSequence
from PIL.JpegImagePlugin import JpegImageFile

from service.artifact.files import read_npy
from service.domain.errors import InvalidContent, TooLarge
from service.images.decode import decode_npy
from service.images.encode import (
    AnimationFormat,
    ImageFormat,
    animate,
    check_sides,
    encode,
    encode_base64,
    encode_npy,
)
from service.images.untrusted import decode_base64
from tests.helpers import pictures as make


@given(st.sampled_from(["png", "webp"]), st.integers(1, 40), st.integers(1, 100), st.booleans(), st.integers(1, 255))
def test_png_and_webp_are_lossless(form: ImageFormat, height: int, width: int, colour: bool, levels: int) -> None:
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


def played(data: bytes) -> list[tuple[NDArray[np.uint8], float]]:
    """The frames in RGB, and how many milliseconds each is shown."""
    shown = ImageSequence.Iterator(make.opened(data))
    return [(np.asarray(frame.convert("RGB")), float(frame.info.get("duration", 0))) for frame in shown]


@pytest.mark.parametrize("form", get_args(AnimationFormat))
def test_equal_neighbours_add_their_times(form: AnimationFormat) -> None:
    a, b = make.noise(2, 8, 8)
    shown = played(animate(np.stack((a, b, b, a)), form, fps=10))
    assert sum(time for _, time in shown) == 400
    assert [int(pixels[0, 0, 0]) for pixels, _ in shown] == [int(x) for x in (a[0, 0], b[0, 0], a[0, 0])]
    ((still, _),) = played(animate(np.stack((a, a)), form, fps=5))
    assert np.array_equal(still[..., 0], a)


@pytest.mark.parametrize("form", get_args(AnimationFormat))
def test_animations_loop(form: AnimationFormat) -> None:
    frames = make.noise(3, 8, 8)
    assert make.opened(animate(frames, form, fps=5)).info["loop"] == 0
    assert animate(frames, form, fps=5) == animate(frames, form, fps=5)


SHAPE = (1, 3, 4)
ROW = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def plain(text: str, max_chars: int = 1000) -> bytes:
    return decode_base64(text, field="images.0", max_chars=max_chars)


@given(st.binary(max_size=200))
def test_base64_round_trip(data: bytes) -> None:
    assert plain(encode_base64(data)) == plain(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    "text",
    [
        "  aGVs\r\nbG8+\tPw=\v\f=\n",
        "data:image/png;base64,aGVsbG8+Pw==",
        "data:image/svg+xml;charset=utf-8;base64,aGVsbG8+Pw==",
        "DATA:IMAGE/X-ICON;BASE64,aGVsbG8+Pw==",
        "\n data:image/webp;base64,\naGVs bG8+Pw==",
    ],
)
def test_base64_prefix_and_white_space(text: str) -> None:
    assert plain(text) == b"hello>?"


def test_base64_length_is_checked_first() -> None:
    assert plain("QUFB", max_chars=4) == b"AAA"
    with pytest.raises(TooLarge, match=r"images\.0: "):
        plain("!!!!!", max_chars=4)


@given(st.text("AQgw09+/-_=: \t\n\v\u00a0ä", max_size=60))
def test_random_text_decodes_or_is_refused(text: str) -> None:
    try:
        data = plain(text)
    except InvalidContent:
        return
    assert base64.b64decode(re.sub(r"[ \t\n\r\f\v]", "", text), validate=True) == data


def saved(array: np.ndarray[Any, Any], version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    return buffer.getvalue()


def row_of(data: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    return decode_npy(data, SHAPE, field="points.0.latent")


def with_header(text: str, payload: bytes = ROW.tobytes()) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode("latin-1") + payload


def test_npy_holds_any_number_of_rows_unclipped() -> None:
    rows = np.array([[[[1e30, -7.5]]], [[[0.0, 3.0]]]], dtype=np.float32)
    loaded = np.load(io.BytesIO(encode_npy(rows[:, ::-1])))
    assert loaded.dtype == np.dtype("<f4")
    assert loaded.flags.c_contiguous
    assert np.array_equal(loaded, rows)
    assert np.array_equal(row_of(encode_npy(ROW)), ROW)


@pytest.mark.parametrize(
    "data",
    [
        *(saved(array, (1, 0)) for array in (ROW, np.asfortranarray(ROW), ROW.astype(">f4"))),
        *(saved(ROW, version) for version in ((2, 0), (3, 0))),
        with_header('{"shape":(1,3,4),"descr":"<f4","fortran_order":False}\n'),
        with_header("{ 'fortran_order' : False ,\n'descr' : '<f4', 'shape' : ( 1, 3, 4, ) }   \n"),
    ],
)
def test_npy_of_other_writers(data: bytes) -> None:
    np.testing.assert_array_equal(read_npy(data), ROW)
    row = row_of(data)
    assert np.array_equal(row, ROW)
    assert row.dtype == np.dtype("=f4")
    assert row.flags.c_contiguous
    assert row.flags.writeable


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY\1\0\xff\xff{",
        b"\x93NUMPY\4\0" + saved(ROW)[8:],
        with_header("{'descr': '<f4', 'shape': (1, 3, 4)}"),
        with_header("{'descr': __import__('os'), 'fortran_order': False, 'shape': (1, 3, 4)}"),
        with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3, 4)}}{' ' * 2000}"),
        saved(np.array([{"pickled": 1}], dtype=object)),
        with_header("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1, 3, 4)}"),
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 10000000000, 4)}"),
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -3, 4)}"),
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': '1,3,4'}"),
        saved(ROW)[:-1],
        saved(ROW) + b"\0",
    ],
)
def test_other_npy_is_refused(data: bytes) -> None:
    """tests/contract/test_bad_uploads.py has arrays of another type, shape or range."""
    with pytest.raises(InvalidContent) as caught:
        row_of(data)
    assert caught.value.error_code == "invalid_npy"
    with pytest.raises(ValueError, match=r"not a \.npy file|its shape needs|Python objects"):
        read_npy(data)


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x93NUMPY", b"\x93NUMPY\1\0\x30\0{'descr': '<f4', "]))
def test_random_npy_raises_nothing_foreign(tail: bytes, head: bytes) -> None:
    with pytest.raises(InvalidContent):
        row_of(head + tail)
