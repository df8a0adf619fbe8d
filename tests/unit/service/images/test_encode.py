"""Encoded images and animations, base64 and .npy."""

import base64
import io
import re
import struct
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageSequence
from PIL.JpegImagePlugin import JpegImageFile

from service.artifact.files import read_npy
from service.domain.errors import InvalidContent, TooLarge
from service.images.decode import decode_npy
from service.images.encode import AnimationFormat, ImageFormat, animate, encode, encode_base64
from service.images.untrusted import decode_base64
from tests.helpers import pictures as make


@given(
    st.sampled_from(["png", "webp"]),
    st.integers(1, 40),
    st.integers(1, 100),
    st.booleans(),
    st.integers(1, 255),
)
def test_png_and_webp_are_lossless(
    form: ImageFormat, height: int, width: int, colour: bool, levels: int
) -> None:
    # need not be contiguous
    pixels = make.noise(2 * height, width, *[3] * colour)[::2, ::-1] // levels * levels
    image = make.opened(encode(pixels, form))
    assert (image.format, image.mode) == (
        form.upper(),
        "L" if form == "png" and not colour else "RGB",
    )
    assert np.array_equal(np.asarray(image if colour else image.convert("L")), pixels)


def test_jpeg_is_of_high_quality_and_keeps_colours_at_full_resolution() -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, 1::2] = 255, 0, 0  # red lines one pixel apart: halved chroma would smear them
    image = make.opened(encode(pixels, "jpeg"))
    assert np.abs(np.asarray(image).astype(int) - pixels).max() < 40
    assert isinstance(image, JpegImageFile)
    assert image.quantization[0][0] == 2
    assert make.opened(encode(make.noise(9, 9), "jpeg")).mode == "L"


@pytest.mark.parametrize("form", get_args(AnimationFormat))
def test_equal_neighbours_add_their_times(form: AnimationFormat) -> None:
    a, b = make.noise(2, 8, 8)
    for frames, expected in (((a, b, b, a), (a, b, a)), ((a, a), (a,))):
        image = make.opened(animate(np.stack(frames), form, fps=10))
        shown = [
            (np.asarray(each.convert("L")), each.info.get("duration", 0))
            for each in ImageSequence.Iterator(image)
        ]
        np.testing.assert_array_equal([pixels for pixels, _ in shown], expected)
        assert len(expected) == 1 or sum(time for _, time in shown) == 100 * len(frames)


def plain(text: str, max_chars: int = 1000) -> bytes:
    return decode_base64(text, field="images.0", max_chars=max_chars)


def test_base64_length_is_checked_first() -> None:
    assert plain("QUFB", max_chars=4) == b"AAA"
    with pytest.raises(TooLarge):
        plain("!!!!!", max_chars=4)


@given(
    st.text("AQgw09+/-_=: \t\n\v\u00a0ä", max_size=60) | st.binary(max_size=200).map(encode_base64)
)
def test_random_text_decodes_or_is_refused(text: str) -> None:
    bare = re.sub(r"[ \t\n\r\f\v]", "", text)
    try:
        expected = base64.b64decode(bare, validate=True)
    except ValueError:
        with pytest.raises(InvalidContent):
            plain(text)
    else:
        assert plain(text) == expected


SHAPE = (1, 3, 4)
ROW = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def saved(array: np.ndarray[Any, Any], version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    return buffer.getvalue()


def with_header(shape: str, descr: str = "'<f4'", rest: str = ", 'fortran_order': False}") -> bytes:
    text = f"{{'descr': {descr}, 'shape': {shape}{rest}"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode("latin-1") + ROW.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        *(saved(array, (1, 0)) for array in (ROW, np.asfortranarray(ROW), ROW.astype(">f4"))),
        *(saved(ROW, version) for version in ((2, 0), (3, 0))),
        with_header('(1,3,4),"fortran_order":False', rest="}\n"),
    ],
)
def test_npy_of_other_writers(data: bytes) -> None:
    np.testing.assert_array_equal(read_npy(data), ROW)
    row = decode_npy(data, SHAPE, field="latent")
    np.testing.assert_array_equal(row, ROW, strict=True)
    assert row.flags.c_contiguous
    assert row.flags.writeable


OTHER = (
    b"\x93NUMPY\1\0\xff\xff{",
    b"\x93NUMPY\4\0" + saved(ROW)[8:],
    with_header("(1, 3, 4)", rest="}"),
    with_header("(1, 3, 4)", "__import__('os')"),
    with_header("(1, 3, 4)", rest=", 'fortran_order': False}" + " " * 2000),
    with_header("(1, 3, 4)", "[('a', '|O')]"),
    with_header("(10000000000, 10000000000, 4)"),
    with_header("(-1, -3, 4)"),
    with_header("'1,3,4'"),
)
HEADS = st.sampled_from([b"", b"\x93NUMPY", b"\x93NUMPY\1\0\x30\0{'descr': '<f4', "])


@given(st.sampled_from(OTHER) | st.builds(bytes.__add__, HEADS, st.binary(max_size=120)))
def test_other_npy_is_refused(data: bytes) -> None:
    """tests/contract/test_bad_uploads.py has arrays of another type, shape or range."""
    with pytest.raises(InvalidContent):
        decode_npy(data, SHAPE, field="latent")
