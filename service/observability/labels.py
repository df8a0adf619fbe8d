"""Values of metric labels, limited in number."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, TypeVar

from prometheus_client import Counter, Gauge, Histogram

MAX_VALUES: Final = 64
OTHER: Final = "other"
_CHILDREN: Final = 1024  # combinations of label values that are cached
Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class LabelLimiter:
    """Keeps the first ``limit`` different label values and maps all others to `other`."""

    def __init__(self, limit: int = MAX_VALUES) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        """The value, or `other`."""
        if value in self._seen:
            return value
        if len(self._seen) >= self._limit:
            return OTHER
        self._seen.add(value)
        return value


def cached_children(metric: Metric, *limiters: Callable[[str], str]) -> Callable[..., Metric]:
    """A function from label values to the child of ``metric``, with a cache. The value None becomes `none`.

    `labels()` of prometheus_client costs more than `inc()`.
    """

    def child(*values: str | None) -> Metric:
        limited = ["none" if value is None else limit(value) for limit, value in zip(limiters, values, strict=True)]
        return metric.labels(*limited)

    return lru_cache(maxsize=_CHILDREN)(child)


def observe_all(histogram: Histogram, values: Sequence[float]) -> None:
    """As `histogram.observe` of each value, but every bucket and the sum change at most once.

    prometheus_client has no such method, so this one reads its private fields.
    """
    counts: dict[int, int] = {}
    for value in values:
        bucket = bisect_left(histogram._upper_bounds, value)
        counts[bucket] = counts.get(bucket, 0) + 1
    if counts:
        histogram._sum.inc(sum(values))
    for bucket, count in counts.items():
        histogram._buckets[bucket].inc(count)
