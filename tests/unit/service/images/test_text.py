import base64
import io
import re
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.artifact.files import read_npy
from service.domain.errors import InvalidContent, TooLarge
from service.images import decode_base64, decode_npy, encode_base64, encode_npy

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
        "aGVsbG8+Pw==",
        "  aGVs\r\nbG8+\tPw=\v\f=\n",
        "data:image/png;base64,aGVsbG8+Pw==",
        "data:image/svg+xml;charset=utf-8;base64,aGVsbG8+Pw==",
        "DATA:IMAGE/X-ICON;BASE64,aGVsbG8+Pw==",
        "\n data:image/webp;base64,\naGVs bG8+Pw==",
    ],
)
def test_base64_prefix_and_white_space(text: str) -> None:
    assert plain(text) == b"hello>?"


@pytest.mark.parametrize(
    "text",
    ["aGVs\u00a0bG8+Pw==", "data:text/plain;base64,aGVs", "data:image/png;base64;aGVs", "aGVsbG8-Pw==", "\ud800"],
)
def test_other_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidContent, match=r"images\.0: ") as caught:
        plain(text)
    assert caught.value.error_code == "invalid_base64"


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
        b"\x93NUMPY",
        b"\x93NUMPY\1\0\xff\xff{",
        b"\x93NUMPY\4\0" + saved(ROW)[8:],
        with_header("{'descr': '<f4', 'shape': (1, 3, 4)}"),
        with_header("{'descr': __import__('os'), 'fortran_order': False, 'shape': (1, 3, 4)}"),
        with_header("(" * 900),
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
    with pytest.raises(ValueError, match=r"not a \.npy file|size differs|Python objects"):
        read_npy(data)


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x93NUMPY", b"\x93NUMPY\1\0\x30\0{'descr': '<f4', "]))
def test_random_npy_raises_nothing_foreign(tail: bytes, head: bytes) -> None:
    with pytest.raises(InvalidContent):
        row_of(head + tail)
