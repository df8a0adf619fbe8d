"""Reader for untrusted `.npy` data: no pickles, and sizes are checked before memory is allocated.

`numpy.load` is not used because it allocates the array that the header declares before it looks at the data.
"""

import io
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

_MAX_HEADER_BYTES: Final = 1024  # NumPy parses the header with `ast.literal_eval`: keep its input small


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """The header of a `.npy` file.

    Args:
        shape: of the array.
        fortran_order: the first index varies fastest.
        dtype: of one element.
        offset: where the data begins, in bytes.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int


def read_npy_header(data: bytes) -> NpyHeader:
    """Parse the header of a `.npy` file.

    Raises:
        ValueError: the data does not begin with a valid header.
    """
    stream = io.BytesIO(data)
    try:
        major, _ = npy_format.read_magic(stream)
        read = npy_format.read_array_header_1_0 if major == 1 else npy_format.read_array_header_2_0
        shape, fortran_order, dtype = read(stream, max_header_size=_MAX_HEADER_BYTES)
    # A damaged header makes the tokenizer, the parser and the dtype constructor raise errors of a dozen types.
    except Exception as exc:
        raise ValueError("not a .npy file") from exc
    return NpyHeader(shape, fortran_order, dtype, stream.tell())


def read_npy(data: bytes) -> NDArray[Any]:
    """Read an array from the bytes of a `.npy` file. The result is a read-only view of ``data``.

    Raises:
        ValueError: not a `.npy` file, an array of Python objects, or a size that differs from the header.
    """
    header = read_npy_header(data)
    if header.dtype.hasobject:
        raise ValueError("holds Python objects")
    if math.prod(header.shape) * header.dtype.itemsize != len(data) - header.offset or min(header.shape, default=0) < 0:
        raise ValueError("size differs from its header")
    values = np.frombuffer(data, dtype=header.dtype, offset=header.offset)
    return values.reshape(header.shape, order="F" if header.fortran_order else "C")
