"""Names in a model directory, and the reader of untrusted `.npy` data.

<name>/<version>/{model.onnx, model.fp16.onnx, golden.npz, metrics.json}
"""

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

Precision = Literal["fp32", "fp16"]

MODEL_FILE: Final = "model.onnx"
MODEL_FILES: Final[Mapping[Precision, str]] = MappingProxyType({"fp32": MODEL_FILE, "fp16": "model.fp16.onnx"})
GOLDEN_FILE: Final = "golden.npz"
METRICS_FILE: Final = "metrics.json"

NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
VERSION_PATTERN: Final = r"^[1-9][0-9]{0,8}$"
_MAX_HEADER_BYTES: Final = 1024  # NumPy parses the header with `ast.literal_eval`: keep its input small


def only_model(directory: Path) -> str | None:
    """The name of the model in a directory; None if that holds several, none, or cannot be read."""
    files = directory.glob(f"*/[1-9]*/{MODEL_FILE}")
    names = {file.parts[-3] for file in files if re.match(NAME_PATTERN, file.parts[-3])}
    return names.pop() if len(names) == 1 else None


class NpyHeader(NamedTuple):
    """The header of a `.npy` file."""

    shape: tuple[int, ...]
    fortran_order: bool  # the first index varies fastest
    dtype: np.dtype[Any]
    offset: int  # bytes before the data


def read_npy_header(data: bytes) -> NpyHeader:
    """Parse the header of a `.npy` file; raises ValueError if the data does not begin with a valid one."""
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
    """Read an array from the bytes of a `.npy` file: a read-only view of ``data``.

    `numpy.load` is not used because it allocates the array that the header declares before it looks at the data.

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
