"""Attributes of pictures: what each picture shows, as one value of each of several kinds, such as hair or glasses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.errors import UserError

KEYS = ("attributes", "attributes_train", "attributes_test")


@dataclass(frozen=True, slots=True, eq=False)
class Attributes:
    """The attributes of a data set."""

    names: tuple[str, ...]
    counts: tuple[int, ...]  # number of values of each attribute
    train: NDArray[np.int64]  # index of the value, (N, K) int64
    held_out: NDArray[np.int64]


def read_attributes(arrays: Mapping[str, NDArray[Any]], name: str, train: int, held_out: int) -> Attributes | None:
    """The attributes in the arrays of an `.npz`, or None if it has none.

    Args:
        arrays: `attributes` (K,) text, `attributes_train` and `attributes_test` (N, K) unsigned integers; others are
            ignored.
    """
    if not any(key in arrays for key in KEYS):
        return None
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise UserError(f"--data {name}: array {missing[0]} is missing")
    names = arrays["attributes"]
    parts = [arrays[key] for key in KEYS[1:]]
    shapes = [(count, len(names)) if names.ndim == 1 else () for count in (train, held_out)]
    if names.dtype.kind != "U" or any(
        part.shape != shape or part.dtype.kind != "u" for part, shape in zip(parts, shapes, strict=True)
    ):
        raise UserError(f"--data {name}: attributes must be names (K,) and unsigned integers (N, K) for each picture")
    first, second = (part.astype(np.int64) for part in parts)
    counts = np.concatenate([first, second]).max(0) + 1
    return Attributes(tuple(map(str, names)), tuple(map(int, counts)), first, second)
