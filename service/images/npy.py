"""Read and write rows as float32 `.npy` files (NumPy enhancement proposal 1), without pickles.

Untrusted headers are not given to `numpy.load`, which allocates the array of the header before it reads the data, and
which reports unusual headers through `warnings`. Regular expressions match the few forms that writers produce.
"""

import io
import re
from typing import Final

import numpy as np

from service.domain.errors import InvalidContent
from service.domain.latents import FloatRow, FloatRows

_MAGIC: Final = b"\x93NUMPY"
_LENGTH_BYTES: Final = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}  # of the length field, by format version
_MAX_HEADER: Final = 1024
_ENTRY: Final = re.compile(
    r"""\s*(['"])(?P<key>descr|fortran_order|shape)\1\s*:\s*"""
    r"""(?:(['"])(?P<text>[<>|=]?\w{1,8})\3|(?P<flag>True|False)|\((?P<shape>[\d\s,]{0,80})\))\s*(?:,|$)"""
)


def decode_npy(data: bytes, shape: tuple[int, int, int], *, field: str) -> FloatRow:
    """Read one row from a float32 `.npy` file, in either byte order, in C or Fortran order.

    Args:
        data: the file.
        shape: expected (C, H, W).
        field: name of the field in errors.

    Returns:
        (C, H, W) float32, C-contiguous.

    Raises:
        InvalidContent: another type or shape, missing or excess data, NaN or infinity (code `invalid_npy`).
    """
    header, start = _header(data)
    if header is None:
        raise _invalid(field, "is not a .npy file")
    if header.get("descr") not in ("<f4", ">f4"):
        raise _invalid(field, "must be float32")
    if header["shape"] != ",".join(map(str, shape)):
        raise _invalid(field, f"must have shape {shape}")
    if len(data) - start != 4 * shape[0] * shape[1] * shape[2]:
        raise _invalid(field, "holds more or less data than its shape needs")
    values = np.frombuffer(data, dtype=header["descr"], offset=start)
    row = values.reshape(shape, order="F" if header["fortran_order"] == "True" else "C")
    if not np.isfinite(row).all():
        raise _invalid(field, "must be finite")
    return np.array(row, dtype=np.float32, order="C")


def encode_npy(rows: FloatRows) -> bytes:
    """Write rows (N, C, H, W), or one row (C, H, W), as `.npy`: little-endian float32, C order, not clipped."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(rows, dtype="<f4"), allow_pickle=False)
    return buffer.getvalue()


def _invalid(field: str, message: str) -> InvalidContent:
    return InvalidContent.field(field, message, code="invalid_npy")


def _header(data: bytes) -> tuple[dict[str, str] | None, int]:
    """The three entries of the header as text (shape as `1,28,28`), or None; and the offset of the data."""
    width = _LENGTH_BYTES.get(data[6:8])
    if not data.startswith(_MAGIC) or width is None:
        return None, 0
    start = 8 + width
    end = start + int.from_bytes(data[8:start], "little")
    if end > min(len(data), _MAX_HEADER):
        return None, 0
    text = data[start:end].decode("latin-1").strip()
    if not (text.startswith("{") and text.endswith("}")):
        return None, 0
    return _entries(text[1:-1].strip()), end


def _entries(text: str) -> dict[str, str] | None:
    entries: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _ENTRY.match(text, position)
        if match is None:
            return None
        shape = match["shape"]
        value = match["text"] or match["flag"] or "".join(shape.split()).removesuffix(",")
        entries[match["key"]] = value
        position = match.end()
    return entries if len(entries) == 3 else None
