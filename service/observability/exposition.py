"""Write metrics for Prometheus: as text or OpenMetrics, of one process or the sum of several.

A scrape must not hold up the event loop, so the text is made in a thread, and all scrapes of a second share it:

    scrape ─┐                 ┌─ thread: collect, format ─┐
    scrape ─┼─ event loop ────┘                           └─ the same bytes to all three
    scrape ─┘
"""

import asyncio
import contextlib
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CACHE_S: Final = 1.0
_OPENMETRICS: Final = "application/openmetrics-text"
_SWITCH_S: Final = 0.0005
_READ_ATTEMPTS: Final = 100  # of the files of several processes
_READ_PAUSE_S: Final = 0.001


class Exposition:
    """The text of all metrics.

    Args:
        registry: the metrics of this process.
        shared: folder with the values of all processes of the service; None for one process.
    """

    def __init__(self, registry: CollectorRegistry, shared: Path | None) -> None:
        self._registry, self._shared = registry, shared
        self._lock = threading.Lock()
        self._latest: dict[str, tuple[float, asyncio.Task[tuple[bytes, str]]]] = {}

    async def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """As `render`, in a thread; the text may be a second old. All calls come from one event loop."""
        kind, now = _OPENMETRICS if _OPENMETRICS in accept else "", time.monotonic()
        began, rendering = self._latest.get(kind, (now, None))
        if rendering is None or (rendering.done() and now - began >= CACHE_S):
            rendering = asyncio.create_task(asyncio.to_thread(self.render, kind))
            self._latest[kind] = now, rendering
        return await asyncio.shield(rendering)  # a client that disconnects must not stop it for the others

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics, and their content type.

        Args:
            accept: the header Accept of the scrape. OpenMetrics, which has exemplars, is written if it is named there.
        """
        encode, content_type = choose_encoder(_OPENMETRICS if _OPENMETRICS in accept else "")
        with self._lock, _short_switch_interval():
            if self._shared is None:
                return encode(self._registry), content_type
            for _ in range(_READ_ATTEMPTS - 1):
                with contextlib.suppress(struct.error, ValueError):
                    return encode(_sum_of_processes(self._shared)), content_type
                time.sleep(_READ_PAUSE_S)  # another process is just creating one of its files, which takes microseconds
            return encode(_sum_of_processes(self._shared)), content_type


@contextlib.contextmanager
def _short_switch_interval() -> Iterator[None]:
    """Let a waiting event loop have the interpreter lock after 0.5 ms, not 5 ms, as often as it needs it."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _sum_of_processes(folder: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return registry


def forget_process(pid: int, shared: Path) -> None:
    """Drop the gauges of a process that has ended; its counters stay in the totals."""
    mark_process_dead(pid, str(shared))  # type: ignore[no-untyped-call]
    for file in shared.glob(f"*_{pid}.db"):
        if not file.stat().st_size:  # the process ended while it created the file, which then cannot be read
            file.unlink()
