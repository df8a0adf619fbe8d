"""How often a model is there: once for each GPU, and on a CPU as often as it pays."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal, Protocol

from service.domain.errors import StartupError
from service.host import cpu_threads
from service.repository import OpenModel
from service.sessions import Cuda
from service.settings import Settings

_QUICK_S: Final = 0.005
"""A model that takes no longer for a row in few threads is better run in several sessions than in one of many."""
LEAST_ON_CPU: Final = 16
"""Rows for which another session is woken: fewer are better left to one that runs, as HTTP wants the cores as well."""
_MOST: Final = 8  # sessions on a CPU: what feeds them computes in one thread at a time


class Make(Protocol):
    """What makes one model: `service.runtime.OnnxModel`."""

    def __call__(
        self, data: bytes, *, device: Literal["auto", "cpu", "cuda"], cuda: Cuda, threads: int, max_batch_rows: int
    ) -> OpenModel:
        """A model of a file's bytes, on one device."""
        ...


class Copies:
    """Opens a model file as often as it is to run side by side.

    Args:
        make: opens it once.
        settings: of device, GPUs, threads and sessions.
    """

    def __init__(self, make: Make, settings: Settings) -> None:
        self._make, self._settings = make, settings
        self._threads = cpu_threads(settings.threads)

    def __call__(self, data: bytes) -> list[OpenModel]:
        """The models; all of them run the same file.

        Raises:
            StartupError: one cannot be opened. The others are closed.
        """
        opened: list[OpenModel] = []
        try:
            for model in self._open(data):
                opened.append(model)
        except BaseException:
            for model in opened:
                model.close()
            raise
        return opened

    def _open(self, data: bytes) -> Iterator[OpenModel]:
        wanted = self._settings.sessions
        count = wanted or _sessions(self._threads)
        first = self._one(data, threads=self._threads // count)
        if first.device == "cuda":
            yield first
            for device in range(1, self._settings.gpus):
                with _on(device):
                    yield self._one(data, device=device)
            return
        if not wanted and count > 1 and _seconds(first) > _QUICK_S:
            first.close()
            yield self._one(data, threads=self._threads)
            return
        yield first
        for _ in range(count - 1):
            yield self._one(data, threads=self._threads // count)

    def _one(self, data: bytes, *, device: int = 0, threads: int = 1) -> OpenModel:
        settings = self._settings
        cuda = Cuda(
            device_id=device,
            deterministic=settings.deterministic,
            graphs=settings.cuda_graphs,
            memory_mib=settings.cuda_memory_mib,
            tensorrt_cache=settings.tensorrt_cache,
            half=settings.precision == "fp16",
        )
        return self._make(
            data,
            device=settings.device,
            cuda=cuda,
            threads=max(1, threads),
            max_batch_rows=settings.max_batch_rows,
        )


def _sessions(threads: int) -> int:
    """One for each thread but one, which is left to HTTP where there are enough."""
    return min(_MOST, threads - 1 if threads > 2 else threads)


def _seconds(model: OpenModel) -> float:
    """Of one row, at best."""
    row = model.noise.rows(0, 0, 1)
    model.run(row)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        model.run(row)
        taken.append(time.perf_counter() - start)
    return min(taken)


@contextmanager
def _on(device: int) -> Iterator[None]:
    try:
        yield
    except StartupError as exc:
        raise StartupError(f"device {device}: {exc.detail}") from exc
