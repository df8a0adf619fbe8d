import io
from typing import Any

import numpy as np
import pytest

from service.artifact.files import read_npy, read_npy_header


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
        np.array("text"),
        np.zeros((0, 3)),
    ],
    ids=["c-order", "fortran-order", "text", "empty"],
)
def test_an_array_is_read_back(array: Any) -> None:
    result = read_npy(npy(array))
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


def test_a_header_is_read_without_its_data() -> None:
    data = npy(np.zeros((4, 2), np.float32))
    header = read_npy_header(data[:-32])
    assert (header.shape, header.fortran_order, header.offset) == ((4, 2), False, 128)
    assert header.dtype == np.float32


def header(shape: str, dtype: str = "'<f4'") -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff{",
        npy(np.zeros(3, np.float32))[:-1],
        npy(np.zeros(3, np.float32)) + b"x",
        npy(np.array([{}], dtype=object)),
        header("(1000000000000000000, 1000000000000000000)"),
        header("(-1, -4)") + bytes(16),
        header("(" * 300 + ")" * 300),
        header("(1,)", "[('a', '|O')]") + bytes(8),
        header("(1,)" + " " * 2000) + bytes(4),
    ],
)
def test_damaged_and_hostile_data_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a \.npy file|size differs|Python objects"):
        read_npy(data)
