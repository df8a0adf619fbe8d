"""Golden rows: inputs with the outputs of the training framework. A provider must reproduce
them.
"""

import hashlib
import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.artifact.files import read_npy
from service.domain.errors import StartupError
from service.domain.latents import FloatRows
from service.domain.model import Model

MAX_BYTES: Final = 256 * 1024 * 1024
MAX_ROWS: Final = 1024


@dataclass(frozen=True, eq=False)
class Golden:
    """The content of `golden.npz`: rows x, y = f(x) by the training framework, both float32 (N, C,
    H, W).
    """

    x: FloatRows
    y: FloatRows
    digest: str  # of the `model.onnx` they belong to

    def to_bytes(self) -> bytes:
        """`golden.npz`; the same rows give the same bytes."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, x=self.x, y=self.y, digest=np.array(self.digest))
        return buffer.getvalue()


class GoldenReport(NamedTuple):
    """How a provider reproduces the golden rows."""

    difference: float  # largest |f(x) − y| over all batches; infinite if an output was not finite
    spread: (
        float  # largest difference of one row between batches, positions in a batch, and devices
    )
    tolerance: float  # upper bound for `difference`

    @property
    def passed(self) -> bool:
        """Whether the provider may serve this model."""
        return self.difference <= self.tolerance

    @property
    def reproducible(self) -> Literal["exact", "close"]:
        """`exact` if the bits of a row depend neither on its batch, nor on its position in it, nor
        on the device.
        """
        return "exact" if self.spread == 0.0 else "close"


def digest_of(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read_golden(path: Path, *shapes: tuple[int, int, int]) -> Golden:
    """Read an untrusted `golden.npz` of rows (C, H, W) of one of the shapes, without pickles.

    Declared sizes are checked before memory is allocated.

    Raises StartupError, which names no path, for anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [f"{name}.npy" for name in ("x", "y", "digest")]
            # A small archive can inflate to gigabytes: check the declared sizes first.
            if any(archive.getinfo(name).file_size > MAX_BYTES for name in members):
                raise ValueError("too large")
            x, y, digest = (read_npy(archive.read(name)) for name in members)
    # zipfile, zlib and the `.npy` reader raise errors of a dozen types on damaged files.
    except Exception as exc:
        raise StartupError("damaged, or not an archive of x, y and digest") from exc
    if x.shape[1:] not in shapes or y.shape != x.shape or not 1 <= len(x) <= MAX_ROWS:
        rows = " or ".join(f"(1…{MAX_ROWS}, *{shape})" for shape in shapes)
        raise StartupError(f"x and y must both be {rows}, not {x.shape} and {y.shape}")
    if any(rows.dtype != np.float32 or not np.isfinite(rows).all() for rows in (x, y)):
        raise StartupError("x and y must be finite float32")
    return Golden(x=x, y=y, digest=str(digest))


def check_golden(
    model: Model, golden: Golden, tolerance: float, copies: Sequence[Model] = ()
) -> GoldenReport:
    """Run the golden rows one by one and in batches, and compare with the outputs of the training
    framework.

    If the device has buckets, every row runs in every bucket at every position: three rows in a
    bucket of 4 run as 0120, 1201, 2012. Otherwise the rows run one by one, in one batch, and in the
    same batch rotated by one. ``copies``, the same model on further devices, must reproduce the
    same rows.
    """
    x = golden.x
    y = golden.y
    first = _one_by_one(model, x)
    difference = spread = 0.0
    for instance in (model, *copies):
        alone = first if instance is model else _one_by_one(instance, x)
        results = (
            (index, instance.run(x[index])) for index in _batch_layouts(instance.buckets, len(x))
        )
        for index, result in chain([(np.arange(len(x)), alone)], results):
            difference = max(difference, max_abs_diff(result, y[index]))
            spread = max(spread, max_abs_diff(result, first[index]))
    return GoldenReport(difference=difference, spread=spread, tolerance=tolerance)


def max_abs_diff(a: FloatRows, b: FloatRows) -> float:
    """Largest absolute difference of two arrays of one shape; infinite if a value is not finite."""
    with np.errstate(invalid="ignore"):
        difference = float(np.abs(a.astype(np.float64) - b).max())
    return difference if math.isfinite(difference) else math.inf


def _one_by_one(model: Model, x: FloatRows) -> FloatRows:
    return np.concatenate([model.run(row[np.newaxis]) for row in x])


def _batch_layouts(buckets: Sequence[int] | None, n: int) -> Iterator[NDArray[np.intp]]:
    """For each batch to run, the indices of its rows among n."""
    rotations = range(n) if buckets else range(min(n, 2))
    for size in buckets or (n,):
        for shift in rotations:
            yield (np.arange(size) + shift) % n
