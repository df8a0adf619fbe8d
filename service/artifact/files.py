"""Names in a model directory, and the reader of untrusted `.npy` data.

<name>/<version>/{model.onnx, model.fp16.onnx, golden.npz, metrics.json}
"""

import io
import math
import re
import threading
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

Precision = Literal["fp32", "fp16"]

MODEL_FILE: Final = "model.onnx"
MODEL_FILES: Final[Mapping[Precision, str]] = {"fp32": MODEL_FILE, "fp16": "model.fp16.onnx"}
GOLDEN_FILE: Final = "golden.npz"
METRICS_FILE: Final = "metrics.json"
MAX_MODEL_BYTES: Final = 2**31 - 1  # the limit of a protobuf message, which an ONNX file is

MODEL_PATH: Final = (
    rf"(?:\w[\w.-]*/){{0,2}}(?:{'|'.join(map(re.escape, (*MODEL_FILES.values(), GOLDEN_FILE)))})"
)
"""Matches the path of a file that serving a model needs, from the model directory."""
NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
VERSION_PATTERN: Final = r"^[1-9][0-9]{0,8}$"
# NumPy parses headers with `ast.literal_eval`, which fails at random if two threads run it at a
# time (SystemError, Python 3.11).
_PARSER: Final = threading.Lock()


def read_npy(data: bytes) -> NDArray[Any]:
    """Read an array from the bytes of a `.npy` file, in either byte order: a read-only view of
    ``data``.

    Raises ValueError, with a text such as `is not a .npy file`, also for Python objects and for
    missing or excess data.
    """
    # `numpy.load` is not used because it allocates the array that the header declares before it
    # looks at the data.
    stream = io.BytesIO(data)
    try:
        major, _ = npy_format.read_magic(stream)
        read = npy_format.read_array_header_1_0 if major == 1 else npy_format.read_array_header_2_0
        with _PARSER:
            shape, fortran_order, dtype = read(stream, max_header_size=1024)
    # A damaged header makes the tokenizer, the parser and the dtype constructor raise errors of a
    # dozen types.
    except Exception as exc:
        raise ValueError("is not a .npy file") from exc
    if dtype.hasobject:
        raise ValueError("holds Python objects")
    offset = stream.tell()
    if math.prod(shape) * dtype.itemsize != len(data) - offset or min(shape, default=0) < 0:
        raise ValueError("holds more or less data than its shape needs")
    return np.frombuffer(data, dtype=dtype, offset=offset).reshape(
        shape, order="F" if fortran_order else "C"
    )
