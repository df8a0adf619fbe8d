"""A Prometheus histogram whose values are added up when it is read, not when they come.

The event loop records several values of every request. A list takes many of them in one call; the
histogram of prometheus_client takes a lock and five calls for each.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import Exemplar, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_MAX_NEW: Final = 1 << 13  # values that wait: 300 KB


class Series:
    """The values of one set of labels. Any thread may call it; one at a time observes."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = np.array(bounds)
        self._lock = threading.Lock()
        self._new = list[float]()
        # of all other values
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._exemplars: dict[int, Exemplar] = {}  # the latest one of each bucket

    def observe(self, values: Sequence[float]) -> None:
        """Count values."""
        self._new.extend(values)
        if len(self._new) > _MAX_NEW:
            self.read()

    def exemplify(self, value: float, labels: dict[str, str]) -> None:
        """Let a value that is counted stand for its bucket."""
        self._exemplars[int(self._bounds.searchsorted(value))] = Exemplar(
            labels, value, time.time()
        )

    def read(self) -> tuple[list[int], float, dict[int, Exemplar]]:
        """How many values each bucket and all buckets below it have, the sum of all values, and
        exemplars by bucket.
        """
        with self._lock:
            # Values that come meanwhile stay: each of these is one operation of the interpreter.
            values = self._new[: len(self._new)]
            del self._new[: len(values)]
            if values:
                places = self._bounds.searchsorted(values)
                self._counts += np.bincount(places, minlength=len(self._counts))
                self._sum += float(np.sum(values))
            return self._counts.cumsum().tolist(), self._sum, self._exemplars.copy()


class Histogram(Collector):
    """A histogram with labels."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._bounds = bounds
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def labels(self, *values: str) -> Series:
        """The series with these values of the labels."""
        return self._series.setdefault(values, Series(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """The histogram as prometheus_client writes it."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, series in self._series.copy().items():
            counts, total, exemplars = series.read()
            # The type says that an exemplar is no None, but prometheus_client writes none for it.
            buckets: list[Any] = [
                (*pair, exemplars.get(i)) for i, pair in enumerate(zip(names, counts, strict=True))
            ]
            family.add_metric(labels, buckets, total)
        yield family
