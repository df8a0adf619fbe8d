"""Random choices."""

from collections.abc import Sequence
from typing import TypeVar

from numpy.random import Generator

T = TypeVar("T")


def choose(g: Generator, values: Sequence[T]) -> T:
    """One of the values; all are equally likely."""
    return values[int(g.integers(len(values)))]
