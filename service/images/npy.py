"""Read and write rows as float32 `.npy` files. `service.artifact.npy` reads the untrusted header."""

import io

import numpy as np

from service.artifact.npy import read_npy_header
from service.domain.errors import InvalidContent
from service.domain.latents import MAX_MAGNITUDE, FloatRow, FloatRows, is_bounded


def decode_npy(data: bytes, shape: tuple[int, int, int], *, field: str) -> FloatRow:
    """Read one row from a float32 `.npy` file, in either byte order, in C or Fortran order.

    Args:
        data: the file.
        shape: expected (C, H, W).
        field: name of the field in errors.

    Returns:
        (C, H, W) float32, C-contiguous.

    Raises:
        InvalidContent: another type or shape, missing or excess data, or a value that is NaN or beyond
            ±`MAX_MAGNITUDE` (code `invalid_npy`).
    """
    try:
        header = read_npy_header(data)
    except ValueError as exc:
        raise _invalid(field, "is not a .npy file") from exc
    if header.dtype.kind != "f" or header.dtype.itemsize != 4:
        raise _invalid(field, "must be float32")
    if header.shape != shape:
        raise _invalid(field, f"must have shape {shape}")
    if len(data) - header.offset != 4 * shape[0] * shape[1] * shape[2]:
        raise _invalid(field, "holds more or less data than its shape needs")
    values = np.frombuffer(data, dtype=header.dtype, offset=header.offset)
    row = values.reshape(shape, order="F" if header.fortran_order else "C")
    if not is_bounded(row):
        raise _invalid(field, f"must hold finite values within ±{MAX_MAGNITUDE:.0f}")
    return np.array(row, dtype=np.float32, order="C")


def encode_npy(rows: FloatRows) -> bytes:
    """Write rows (N, C, H, W), or one row (C, H, W), as `.npy`: little-endian float32, C order, not clipped."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(rows, dtype="<f4"), allow_pickle=False)
    return buffer.getvalue()


def _invalid(field: str, message: str) -> InvalidContent:
    return InvalidContent.field(field, message, code="invalid_npy")
