"""How often a model is there: once for each GPU, and on a CPU as often as it pays."""

import time
from typing import Final, Literal, Protocol

from service.domain.errors import ModelFailure
from service.domain.model import DeviceOutOfMemory
from service.environment import cpu_threads
from service.models.repository import InferenceModel, LoadedModel, wrap_errors
from service.runtime.session import CudaOptions
from service.settings import Settings

_QUICK_S: Final = 0.005
"""A model that takes no longer for a row in few threads is better run in several sessions than in one of many."""
_LEAST_ON_CPU: Final = 16
_TRIES: Final = 10  # for a machine that has other things to do
_MOST: Final = 8  # sessions on a CPU: what feeds them computes in one thread at a time

Device = Literal["auto", "cpu", "cuda"]


class Make(Protocol):
    """What makes one model: `service.runtime.onnx_model.OnnxModel`."""

    def __call__(
        self, data: bytes, *, device: Device, cuda: CudaOptions, threads: int, max_batch_rows: int
    ) -> InferenceModel:
        """A model of a file's bytes, on one device."""
        ...


class InstanceFactory:
    """Opens a model file as often as it is to run side by side.

    Args:
        make: opens it once.
        settings: of device, GPUs, threads and sessions.
    """

    def __init__(self, make: Make, settings: Settings) -> None:
        self._make, self._settings = make, settings
        self._threads = cpu_threads(settings.threads)

    def __call__(self, data: bytes) -> list[InferenceModel]:
        """The models; all of them run the same file.

        Raises:
            StartupError: one cannot be opened. The others are closed.
        """
        settings, wanted = self._settings, self._settings.sessions
        count = wanted or _side_by_side(self._threads)
        first = self._one(data, settings.device, threads=self._threads // count)
        opened = [first]
        try:
            if first.device == "cuda":
                for number in range(1, settings.gpus):
                    with wrap_errors(f"device {number}"):
                        opened.append(self._one(data, settings.device, number))
            elif count > 1 and not wanted and _is_slow(first):
                first.close()
                opened = [self._one(data, settings.device, threads=self._threads)]
            else:
                for _ in range(count - 1):
                    opened.append(self._one(data, "cpu", threads=self._threads // count))
        except BaseException:
            for model in opened:
                model.close()
            raise
        return opened

    def _one(self, data: bytes, device: Device, number: int = 0, *, threads: int = 1) -> InferenceModel:
        settings = self._settings
        cuda = CudaOptions(
            device_id=number,
            deterministic=settings.deterministic,
            graphs=settings.cuda_graphs,
            memory_mib=settings.cuda_memory_mib,
            half=settings.precision == "fp16",
        )
        limit = settings.max_batch_rows
        return self._make(data, device=device, cuda=cuda, threads=max(1, threads), max_batch_rows=limit)


def least_rows(loaded: LoadedModel) -> int:
    """Fewest rows of few steps for which another copy is woken while one runs.

    On a CPU fewer are better left to the one that runs, as HTTP wants the cores as well.
    """
    return 1 if loaded.device == "cuda" else _LEAST_ON_CPU


def _side_by_side(threads: int) -> int:
    """A session for each thread but one, which is left to HTTP where there are enough."""
    return min(_MOST, threads - 1 if threads > 2 else threads)


def _is_slow(model: InferenceModel) -> bool:
    """Whether a row takes long, at best. One that fails does not: verification will say what is wrong."""
    row = model.noise.rows(0, 0, 1)
    for _ in range(_TRIES):
        start = time.perf_counter()
        try:
            model.run(row)
        except (ModelFailure, DeviceOutOfMemory):
            return False
        if time.perf_counter() - start <= _QUICK_S:
            return False
    return True
