"""Models within a limit of memory (`IGN_MODEL_MEMORY_MIB`): open while rows wait for them, or while there is room.

            acquire: rows wait                 release: none are left
    closed ────────────────────▶ open, in use ───────────────────────▶ open, idle
      ▲                               ▲            acquire                │   │
      │                               └───────────────────────────────────┘   │
      └───────────────────────────────────────────────────────────────────────┘
                       another model needs its room, and it was used least recently

Each version is verified when it is loaded, as without a limit. To open it again, only its digest is compared.
"""

import contextlib
import ctypes
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

from service.artifact.files import MODEL_FILES
from service.artifact.golden import digest_of
from service.domain.errors import ModelFailure, StartupError, wrap_errors
from service.domain.latents import FloatRows
from service.domain.model import DeviceOutOfMemory, ModelMemory
from service.environment import resident_bytes
from service.models.repository import LOAD_S, InferenceModel, LoadedModel, Repository, describe_failure

_LOG = logging.getLogger(__name__)
_MIB: Final = 2**20
_ESTIMATE: Final = 8  # times its file is what a model gets until it is measured
_LEAST: Final = 2  # times its file is what an instance takes at least: the weights, and the bytes they were read from
_POLL_S: Final = 0.05  # between two looks at whether a model that waits for room is still wanted


class Memory:
    """What open models may take together. Any thread may call it.

    ``on_change`` gets the number of open models and their bytes. ``on_opened`` is called for each model that was closed
    before.
    """

    def __init__(
        self,
        limit_mib: int,
        *,
        on_change: Callable[[int, int], None] = lambda *_: None,
        on_opened: Callable[[], None] = lambda: None,
    ) -> None:
        self.limit, self._on_change, self.on_opened = limit_mib * _MIB, on_change, on_opened
        self._changed = threading.Condition()
        self._open: dict[OnDemandModel, int] = {}  # its bytes; the one used least recently first
        self._waiting: list[OnDemandModel] = []  # for room; who came first gets it first

    def enter(self, model: "OnDemandModel", is_wanted: Callable[[], bool]) -> bool:
        """Count a use of a model, and its bytes; waits for room, and returns False if nobody wants it then."""
        with self._changed:
            self._waiting.append(model)
            try:
                while model not in self._open and not (self._waiting[0] is model and self._make_room(model.size)):
                    if not is_wanted():
                        return False
                    self._changed.wait(_POLL_S)
            finally:
                self._waiting.remove(model)
            model.users += 1
            self._set(model, model.size)
            return True

    def leave(self, model: "OnDemandModel") -> None:
        """End a use."""
        with self._changed:
            model.users -= 1
            self._changed.notify_all()

    def resize(self, model: "OnDemandModel", size: int) -> None:
        """Count what a model in use takes indeed, or 0 for a closed one; raises StartupError if it is too much."""
        if size > self.limit:
            raise StartupError(f"needs {size / _MIB:.0f} MiB, more than IGN_MODEL_MEMORY_MIB={self.limit // _MIB}")
        with self._changed:
            self._make_room(size - self._open.get(model, 0))
            self._set(model, size)

    def _set(self, model: "OnDemandModel", size: int) -> None:
        before = self._open.pop(model, 0)
        if size:
            self._open[model] = size
        if size != before:
            self._changed.notify_all()
            self._on_change(len(self._open), sum(self._open.values()))

    def _make_room(self, size: int) -> bool:
        excess = sum(self._open.values()) + size - self.limit
        idle = {model: held for model, held in self._open.items() if not model.users}
        if excess > sum(idle.values()):
            return False
        for model, held in idle.items():
            if excess > 0:
                excess -= held
                self._set(model, 0)
                model.close_instances()
                _LOG.info("%s is closed to free memory", model.ref)
        return True


class OnDemandModel(ModelMemory):
    """The instances of one version. ``open_again`` opens as many as there were."""

    def __init__(self, memory: Memory, ref: str, size: int) -> None:
        self.ref, self.size, self._memory = ref, size, memory
        self.users = 0  # guarded by the lock of `Memory`
        self.instances: Sequence[InferenceModel] = ()
        self.open_again: Callable[[], Sequence[InferenceModel]] = tuple
        self.failure = ""
        self._opening = threading.Lock()  # one worker opens the model, and the others wait
        self._is_closed = False

    def acquire(self, is_wanted: Callable[[], bool]) -> bool:
        """See `ModelMemory`."""
        with self._opening:
            if not self._memory.enter(self, lambda: is_wanted() and not self._is_closed):
                return False
            if not self.instances:
                try:
                    if self._is_closed:
                        raise StartupError("it is closed")
                    self.instances, self.failure = self.open_again(), ""
                    self._memory.on_opened()
                except Exception as exc:
                    earlier, self.failure = self.failure, describe_failure(self.ref, exc)
                    if self.failure != earlier:
                        _LOG.error("%s cannot be opened: %s", self.ref, self.failure)
                    self._memory.resize(self, 0)
                _free_unused()
            return True

    def release(self) -> None:
        """See `ModelMemory`."""
        self._memory.leave(self)

    def call(self, index: int, method: str, *arguments: Any) -> Any:
        """Call a method of an instance, which is open meanwhile."""
        if not self.acquire(lambda: True):
            raise ModelFailure("the model is closed")
        try:
            instances = self.instances
            if not instances:
                raise ModelFailure("the model cannot be opened", reason=self.failure)
            return getattr(instances[index], method)(*arguments)
        finally:
            self.release()

    def close(self) -> None:
        """Close the instances for good."""
        self._is_closed = True
        self._memory.resize(self, 0)
        self.close_instances()

    def close_instances(self) -> None:
        """Release the sessions and their memory."""
        instances, self.instances = self.instances, ()
        for instance in instances:
            instance.close()
        del instances
        _free_unused()


class OnDemandInstance:
    """Stands for one instance of an `OnDemandModel` on a CPU, and opens the model for a call if it is closed."""

    buckets = None

    def __init__(self, model: OnDemandModel, index: int, opened: InferenceModel) -> None:
        self._model, self._index, self.shape = model, index, opened.card.shape
        self.warm_up = partial(model.call, index, "warm_up")
        self.reduce_max_batch = partial(model.call, index, "reduce_max_batch")
        self.close = model.close

    def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
        """See `Model`."""
        instances = self._model.instances  # a worker has acquired them, unless its rows came just now
        if instances:
            return instances[self._index].run(rows, out)
        result: FloatRows = self._model.call(self._index, "run", rows, out)
        return result


class OnDemandRepository(Repository):
    """A repository whose models are open on demand. One measures itself when it is loaded, with ``max_batch_rows``."""

    def __init__(self, *, memory: Memory, max_batch_rows: int, **options: Any) -> None:
        super().__init__(**options)
        self._memory, self._max_batch_rows = memory, max_batch_rows

    def _load(self, ref: str) -> LoadedModel:
        file, until = self._path(ref, MODEL_FILES[self._precision]), time.monotonic() + LOAD_S
        size = sum(stat[2] for stat in self._identities([file]))
        model = OnDemandModel(self._memory, ref, min(self._memory.limit, _ESTIMATE * size))
        if not self._memory.enter(model, lambda: time.monotonic() < until):
            raise StartupError(f"{file}: no room within IGN_MODEL_MEMORY_MIB: every other model has requests")
        try:
            before = resident_bytes()
            loaded = super()._load(ref)
            model.instances = loaded.instances
            model.size = self._measure(loaded, before, _LEAST * size)
            with wrap_errors(file):
                self._memory.resize(model, model.size)
        except BaseException:
            model.close()
            raise
        finally:
            model.release()
        model.open_again = partial(self._open_again, file, loaded.digest, len(loaded.instances))
        instances = [OnDemandInstance(model, index, opened) for index, opened in enumerate(loaded.instances)]
        return replace(loaded, instances=cast(tuple[InferenceModel, ...], tuple(instances)), memory=model)

    def _measure(self, loaded: LoadedModel, before: int, least: int) -> int:
        """Bytes of the open instances, each with the scratch memory of the largest batch."""
        _free_unused()
        opened, model, count = resident_bytes(), loaded.instances[0], len(loaded.instances)
        with contextlib.suppress(ModelFailure, DeviceOutOfMemory):  # smaller batches run; the golden rows did
            model.run(model.noise.rows(0, 0, loaded.card.batch_rows(self._max_batch_rows)))
        return max(opened - before, count * least) + count * max(0, resident_bytes() - opened)

    def _open_again(self, file: str, digest: str, count: int) -> Sequence[InferenceModel]:
        data = self._read(file)
        if digest_of(data) != digest:
            raise StartupError(f"{file}: changed since it was verified; load the model again")
        return self._open_models(data, count)


def _free_unused() -> None:
    """Return freed memory to the system, where the C library can do that; glibc keeps it for later allocations."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
