"""Model instances: how many of a model run in parallel in a process, on which devices and with how
many threads.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from service.domain.errors import ModelFailure, wrap_errors
from service.domain.latents import FloatRows, NoiseSource
from service.domain.model import DeviceOutOfMemory
from service.environment import available_cpus, lower_priority
from service.models.loaded import close_all
from service.runtime.onnx_model import OnnxModel
from service.runtime.session import CudaOptions
from service.settings import Settings

# up to here, several instances with few threads are faster than one with many
_FAST_ROW_S: Final = 0.005


def open_instances(
    make_model: Callable[..., OnnxModel],
    settings: Settings,
    data: bytes,
    *,
    alone: bool = False,
) -> list[OnnxModel]:
    """The instances of one model file: one on each GPU; on a CPU one with all threads.

    A fast model leaves one thread to HTTP: more cores are for more processes. In a program that is
    ``alone``, with one model and without HTTP, a fast model has up to eight instances on a CPU, and
    a slow one two; they share the threads, and nothing is to go before its tiles. Raises
    StartupError, all closed, if one cannot be made.
    """
    threads = settings.threads or available_cpus()
    left = max(1, threads - 1)
    # one Python thread at a time prepares their batches
    count = min(8, left) if alone else 1
    each = left // count

    cuda = CudaOptions(half=settings.precision == "fp16")
    make = partial(make_model, data, max_batch_rows=settings.max_batch_rows, low_priority=not alone)
    first = make(device=settings.device, cuda=cuda, threads=each)
    instances = [first]
    try:
        if first.device == "cuda":
            for device_id in range(1, settings.gpu_count):
                with wrap_errors(f"device {device_id}"):
                    instances.append(make(device="cuda", cuda=cuda._replace(device_id=device_id)))
        else:
            if threads > 1 and _is_slow(first):
                first.close()
                instances.clear()
                count = 1 + alone
                each = threads // count
            for _ in range(count - len(instances)):
                instances.append(
                    make(device="cpu" if instances else settings.device, cuda=cuda, threads=each)
                )
    except BaseException:
        close_all(instances)
        raise
    return instances


class SharedModel:
    """A model of tiles, which lanes of several schedulers call: one call at a time, in the order in
    which they ask, so that a small tile waits for one large tile at most.

    The calls run in a thread of their own, with the priority that the model asks for.
    """

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        prepare = lower_priority if model.is_low_priority else None
        self._thread = ThreadPoolExecutor(1, "ign-shared", prepare)

    @property
    def buckets(self) -> Sequence[int] | None:
        """See `Model`."""
        return self._model.buckets

    def run(self, rows: FloatRows) -> FloatRows:
        """See `Model`."""
        return self._thread.submit(self._model.run, rows).result()

    def reduce_max_batch(self) -> None:
        """See `Model`."""
        self._thread.submit(self._model.reduce_max_batch).result()


def _is_slow(model: OnnxModel) -> bool:
    # A model that fails counts as fast; its verification reports the failure.
    row = NoiseSource(model.card.row_shapes[0]).rows(0, 0, 1)
    for _ in range(10):  # the fastest one counts, as other programs may slow down some
        start = time.perf_counter()
        try:
            model.run(row)
        except (ModelFailure, DeviceOutOfMemory):
            return False
        seconds = time.perf_counter() - start
        if seconds <= _FAST_ROW_S:
            return False
        if seconds > 20 * _FAST_ROW_S:  # so much is no disturbance, and a tile takes half a second
            break
    return True
