"""Draw a data set on every core."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from typing import TypeVar

from model_export.progress import progress

Drawn = TypeVar("Drawn")


def in_processes(
    draw: Callable[[int], Drawn], count: int, *, chunk: int, unit: str
) -> Iterator[Drawn]:
    """draw(0), …, draw(count − 1), in this order, with a bar of progress.

    `draw` can be pickled; a process draws `chunk` of them at once.
    """
    workers = min(len(os.sched_getaffinity(0)), -(-count // chunk))
    # `spawn`, because a fork would copy the threads' locks of libraries that are already loaded.
    several = (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        if workers > 1
        else nullcontext()
    )
    with several as pool:
        drawn = pool.map(draw, range(count), chunksize=chunk) if pool else map(draw, range(count))
        yield from progress(drawn, total=count, unit=unit)
