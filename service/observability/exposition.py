"""Write metrics for Prometheus: as text or OpenMetrics, of one process or the sum of several."""

import contextlib
import struct
import time
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_READ_ATTEMPTS: Final = 100  # of the files of several processes
_READ_PAUSE_S: Final = 0.001


def render(registry: CollectorRegistry, shared: Path | None, accept: str = "") -> tuple[bytes, str]:
    """All metrics, and their content type.

    Args:
        registry: the metrics of this process.
        shared: folder with the values of all processes of the service; None for one process.
        accept: the header Accept of the scrape. OpenMetrics, which has exemplars, is written if it is named there.
    """
    encode, content_type = choose_encoder(accept)
    if shared is None:
        return encode(registry), content_type
    for _ in range(_READ_ATTEMPTS - 1):
        with contextlib.suppress(struct.error, ValueError):
            return encode(_sum_of_processes(shared)), content_type
        time.sleep(_READ_PAUSE_S)  # another process is just creating one of its files, which takes microseconds
    return encode(_sum_of_processes(shared)), content_type


def forget_process(pid: int, shared: Path) -> None:
    """Drop the gauges of a process that has ended; its counters stay in the totals."""
    mark_process_dead(pid, str(shared))  # type: ignore[no-untyped-call]
    for file in shared.glob(f"*_{pid}.db"):
        if not file.stat().st_size:  # the process ended while it created the file, which then cannot be read
            file.unlink()


def _sum_of_processes(folder: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return registry
