"""Golden rows: what training says f gives, and how closely a provider reproduces it."""

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from service.domain.errors import StartupError
from service.domain.latents import FloatRows
from service.domain.model import Model

MAX_BYTES: Final = 256 * 1024 * 1024
MAX_ROWS: Final = 1024
_MEMBERS: Final = ("x", "y", "digest")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    """The content of `golden.npz`: rows x, y = f(x) by the training framework, both float32 (N, C, H, W).

    Args:
        x, y: the rows.
        digest: SHA-256, in hexadecimal, of the `model.onnx` they belong to.
    """

    x: FloatRows
    y: FloatRows
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenReport:
    """How a provider reproduces the golden rows.

    Args:
        difference: largest |f(x) − y| over every batch that was run; infinite when an output was not finite.
        spread: largest difference of one row between the batches, the places in them, and the devices.
        tolerance: what `difference` may be.
        batches: batch sizes that were run.
    """

    difference: float
    spread: float
    tolerance: float
    batches: tuple[int, ...]

    @property
    def passed(self) -> bool:
        """Whether the provider may serve this model."""
        return self.difference <= self.tolerance

    @property
    def reproducible(self) -> Literal["exact", "close"]:
        """`exact` when a row's bits depend neither on its batch, nor on its place in it, nor on the device."""
        return "exact" if self.spread == 0.0 else "close"


def read_golden(path: Path, shape: tuple[int, int, int]) -> Golden:
    """Read `golden.npz` without pickles, and without trusting the sizes it declares.

    Args:
        path: the file.
        shape: (C, H, W) of the model's rows.

    Raises:
        StartupError: not such an archive, too large, or arrays of another kind or shape; the text names no path.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            x, y, digest = (_array(archive, f"{name}.npy") for name in _MEMBERS)
    except Exception as exc:  # zlib, zipfile and numpy's header parser have a dozen kinds between them
        raise StartupError("damaged, or not an archive of x, y and digest") from exc
    if x.ndim != 4 or x.shape[1:] != shape or y.shape != x.shape or not 1 <= len(x) <= MAX_ROWS:
        raise StartupError(f"x and y must both be (1…{MAX_ROWS}, *{shape}), not {x.shape} and {y.shape}")
    if any(rows.dtype != np.float32 or not np.isfinite(rows).all() for rows in (x, y)):
        raise StartupError("x and y must be finite float32")
    return Golden(x=x, y=y, digest=str(digest))


def _array(archive: zipfile.ZipFile, member: str) -> NDArray[Any]:
    if archive.getinfo(member).file_size > MAX_BYTES:
        raise ValueError("too large")
    stream = io.BytesIO(archive.read(member))
    major, _ = npy.read_magic(stream)
    read_header = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    # The header's shape is allocated before the data is looked at.
    if math.prod(shape) * dtype.itemsize != len(stream.getbuffer()) - stream.tell():
        raise ValueError("size differs from its header")
    stream.seek(0)
    return npy.read_array(stream, allow_pickle=False)


def check_golden(model: Model, golden: Golden, tolerance: float, copies: Sequence[Model] = ()) -> GoldenReport:
    """Run golden rows alone and among others, and compare with what training computed.

    On a device with buckets every row runs in every bucket and in every place of it; else alone, in one batch with
    the others, and in that batch rotated.

    Args:
        model: runs the rows.
        golden: N rows.
        tolerance: largest absolute difference allowed.
        copies: the model on further devices, which are held to the same rows.
    """
    x, y = golden.x, golden.y
    first = _alone(model, x)
    difference, spread = _largest(first, y), 0.0
    batches: set[int] = set()
    for one in (model, *copies):
        for places in _placements(one.buckets, len(x)):
            result = one.run(x[places])
            difference = max(difference, _largest(result, y[places]))
            spread = max(spread, _largest(result, first[places]))
        batches.update(one.buckets or (1, len(x)))
    for copy in copies:
        alone = _alone(copy, x)
        difference, spread = max(difference, _largest(alone, y)), max(spread, _largest(alone, first))
    return GoldenReport(difference=difference, spread=spread, tolerance=tolerance, batches=tuple(sorted(batches)))


def _alone(model: Model, x: FloatRows) -> FloatRows:
    return np.concatenate([model.run(row[np.newaxis]) for row in x])


def _placements(buckets: Sequence[int] | None, n: int) -> Iterator[NDArray[np.intp]]:
    """Which of n rows stand where in each batch to be checked."""
    rotations = range(n) if buckets else range(min(n, 2))
    for size in buckets or (n,):
        for shift in rotations:
            yield (np.arange(size) + shift) % n


def _largest(a: FloatRows, b: FloatRows) -> float:
    with np.errstate(invalid="ignore"):
        difference = float(np.abs(a.astype(np.float64) - b).max())
    return difference if math.isfinite(difference) else math.inf
