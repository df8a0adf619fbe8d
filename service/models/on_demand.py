"""Models within a limit of memory (`IGN_MODEL_MEMORY_MIB`): open while rows wait for them, or while
there is room.

              acquire: rows wait            release: none are left, or another model's turn
    closed ────────────────────▶ open, in use ───────────────────────────────▶ open, idle
      ▲                              │    ▲                acquire                │  │
      │                              │    └───────────────────────────────────────┘  │
      └──────────────────────────────┴───────────────────────────────────────────────┘
          another model needs its room: the idle one that was used least recently, then
          the one in use whose callers have had most

Models wait for room in the order of what their callers have had of it. Each caller with rows has an
account of bytes times seconds, which the callers of a model share equally. A newcomer begins with
as little as any other has, and accounts grow only while a model waits. The rank of a model is the
least of its callers' accounts:

- The waiting model with the lowest rank is next; of equal ones, the one that came first.
- It takes the room of models in use with the same or a higher rank. Their workers release them
  between two steps, and the rows wait in the queue. So every model gets a turn, however long the
  requests of others are.
- A model that was opened stays open at least as long as that took. So opening takes half of the
  time at most.

A request is refused at once (503 `not_ready`, `Retry-After`) if its model is closed and would not
open before the deadline: each model of the same or a lower rank that waits, and its own, takes
twice the time that it last took to open, in its part of the memory.

Each version is verified when it is loaded, as without a limit. To open it again, only its digest is
compared.
"""

import ctypes
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import numpy as np

from service.artifact.files import MODEL_FILES
from service.artifact.golden import digest_of
from service.domain.accounts import UNLIMITED, Accounts
from service.domain.errors import ModelFailure, StartupError, wrap_errors
from service.domain.model import DeviceOutOfMemory, ModelMemory
from service.environment import resident_bytes
from service.models.loaded import LoadedModel, close_all
from service.models.repository import Repository, describe_failure

if TYPE_CHECKING:
    from service.runtime.onnx_model import OnnxModel

_LOG = logging.getLogger(__name__)
_MIB: Final = 2**20
_ESTIMATE: Final = 8  # times its file is what a model gets until it is measured
_POLL_S: Final = 0.05  # between two looks at what waits for room


class Memory:
    """What open models may take together. Any thread may call it.

    ``on_change`` gets the number of open models and their bytes. ``on_opened`` is called for each
    model that was closed before. A thread that holds the lock takes no other one; it calls the
    ``callers`` of models.
    """

    def __init__(
        self,
        limit_mib: int,
        *,
        on_change: Callable[[int, int], None] = lambda *_: None,
        on_opened: Callable[[], None] = lambda: None,
    ) -> None:
        self.limit = limit_mib * _MIB
        self._on_change = on_change
        self.on_opened = on_opened
        self._changed = threading.Condition()
        self._open: dict[OnDemandModel, int] = {}  # its bytes; the one used least recently first
        self.waiting: list[OnDemandModel] = []  # the one that came first, first
        self.accounts = Accounts(UNLIMITED)  # bytes times seconds that each caller has spent
        self._looked = 0.0  # when `_look` ran last

    def enter(self, model: "OnDemandModel") -> bool:
        """Count a use of a model, and its bytes; waits for room, and returns False if no caller has
        rows then.
        """
        with self._changed:
            self.waiting.append(model)
            if model not in self._open:
                self._look()
            while (model not in self._open or model.is_claimed) and model.present():
                if not self._changed.wait(_POLL_S):
                    self._look()
            self.waiting.remove(model)
            if model in self._open:
                model.users += 1
                self._set(model, model.size)
            return model in self._open

    def leave(self, model: "OnDemandModel") -> None:
        """End a use."""
        with self._changed:
            model.users -= 1
            model.is_claimed &= model.users > 0
            if self.waiting:
                self._look()

    def resize(self, model: "OnDemandModel", size: int) -> None:
        """Count what a model in use takes indeed, or 0 for a closed one; raises StartupError if it
        is too much.
        """
        if size > self.limit:
            raise StartupError(
                f"needs {size / _MIB:.0f} MiB, more than IGN_MODEL_MEMORY_MIB={self.limit // _MIB}"
            )
        with self._changed:
            self._make_room(
                size - self._open.get(model, 0), [each for each in self._open if not each.users]
            )
            self._set(model, size)

    def _look(self) -> None:
        """Give room to the models that wait, in their order, as far as there is any."""
        self._charge()
        for model in sorted(self.waiting, key=attrgetter("rank")):
            if model not in self._open and model.rank < math.inf:
                ripe = [each for each in self._open if each.ripe_at <= self._looked]
                closable = [each for each in ripe if not each.users or each.rank >= model.rank]
                if not self._make_room(model.size, sorted(closable, key=attrgetter("users"))):
                    break
                model.ripe_at = math.inf
                self._set(model, model.size)
        self._changed.notify_all()

    def _charge(self) -> None:
        """Count the room that each caller has had since the last look."""
        now = time.monotonic()
        # more if no model has waited
        seconds = min(now - self._looked, _POLL_S)
        self._looked = now
        callers = {model: model.present() for model in (*self._open, *self.waiting)}
        spent = self.accounts.begin(set().union(*callers.values()))
        for model, its_callers in callers.items():
            for caller in its_callers:
                spent[caller] += seconds * self._open.get(model, 0) / len(its_callers)
        for model, its_callers in callers.items():
            model.rank = min(map(spent.__getitem__, its_callers), default=math.inf)

    def _make_room(self, size: int, models: Sequence["OnDemandModel"]) -> bool:
        """Close as many of these models, or claim them if they are in use, as it takes; whether
        there is room now.
        """
        excess = sum(self._open.values()) + size - self.limit
        for each in models:
            if excess > 0:
                excess -= self._open[each]
                each.is_claimed = each.users > 0
                if not each.users:
                    self._set(each, 0)
                    each.close_instances()
                    _LOG.info("%s is closed to free memory", each.ref)
        return sum(self._open.values()) + size <= self.limit

    def _set(self, model: "OnDemandModel", size: int) -> None:
        before = self._open.pop(model, 0)
        if size:
            self._open[model] = size
        if size != before:
            self._on_change(len(self._open), sum(self._open.values()))


@dataclass(eq=False)
class OnDemandModel(ModelMemory):
    """The instances of one version on a CPU. ``read`` gives the bytes of its file again."""

    memory: Memory
    ref: str
    size: int

    def __post_init__(self) -> None:
        self.instances: Sequence[OnnxModel] = ()
        self.read: Callable[[], bytes] = bytes
        self.is_open = False
        self.failure = ""
        # Guarded by the lock of `Memory`.
        self.users = 0
        self.is_claimed = False
        self.rank = 0.0  # at the last look
        self.ripe_at = 0.0  # from when on it may close for another one; infinite while it is opened
        self.opening_s = 0.0  # how long it took last to open it
        self.callers = []
        self._opening = threading.Lock()  # one worker opens the model, and the others wait
        self._is_closed = False

    def present(self) -> set[str]:
        """The callers with rows for this model; none once it is closed for good."""
        return (
            set() if self._is_closed else {key for callers in [*self.callers] for key in callers()}
        )

    def acquire(self) -> bool:
        """See `ModelMemory`."""
        with self._opening:
            is_open = self.memory.enter(self)
            if is_open and not self.is_open:
                self._open()
            return is_open

    def release(self) -> None:
        """See `ModelMemory`."""
        self.memory.leave(self)

    def seconds_to_open(self, caller: str) -> float:
        """See `ModelMemory`, and the module for how it is predicted. Takes no lock."""
        memory = self.memory
        rank = memory.accounts.spent.get(caller, 0.0)
        turns = {self, *(each for each in [*memory.waiting] if each.rank <= rank)}
        if self.is_open:
            return 0.0
        return sum(2 * each.opening_s * each.size for each in turns) / memory.limit

    def _open(self) -> None:
        began = time.monotonic()
        try:
            if self._is_closed:
                raise StartupError("it is closed")
            data = self.read()
            for instance in self.instances:
                instance.reopen(data)
            self.is_open = True
            self.failure = ""
            self.memory.on_opened()
        except Exception as exc:
            earlier = self.failure
            self.failure = describe_failure(self.ref, exc)
            if self.failure != earlier:
                _LOG.error("%s cannot be opened: %s", self.ref, self.failure)
            self.memory.resize(self, 0)
            self.close_instances()
        _free_unused()
        self.opening_s = time.monotonic() - began
        self.ripe_at = began + 2 * self.opening_s

    def close(self) -> None:
        """See `ModelMemory`."""
        self._is_closed = True
        self.memory.resize(self, 0)
        self.close_instances()

    def close_instances(self) -> None:
        """Release the sessions and their memory."""
        self.is_open = False
        close_all(self.instances)
        _free_unused()


@dataclass(kw_only=True, eq=False)
class OnDemandRepository(Repository):
    """A repository whose models are open on demand. One measures itself when it is loaded, with
    ``max_batch_rows``.
    """

    memory: Memory
    max_batch_rows: int

    def _load(self, ref: str) -> LoadedModel:
        file = self._path(ref, MODEL_FILES[self.precision])
        size = sum(stat[2] for stat in self._identities([file]))
        model = OnDemandModel(self.memory, ref, min(self.memory.limit, _ESTIMATE * size))
        model.callers.append(lambda: [""])  # while it is loaded, for nobody
        self.memory.enter(model)
        model.callers.clear()
        try:
            before = resident_bytes()
            loaded = super()._load(ref)
            model.instances = loaded.instances
            model.is_open = True
            # An instance takes at least its weights, and the bytes that they were read from.
            model.size = self._measure(loaded, before, 2 * size)
            with wrap_errors(file):
                self.memory.resize(model, model.size)
        except BaseException:
            model.close()
            raise
        finally:
            model.ripe_at = 0.0
            model.release()
        model.read = partial(self._read_verified, file, loaded.digest)
        return replace(loaded, memory=model)

    def _measure(self, loaded: LoadedModel, before: int, least: int) -> int:
        """Bytes of the open instances, each with the scratch memory of the largest batch."""
        _free_unused()
        opened = resident_bytes()
        model = loaded.instances[0]
        count = len(loaded.instances)
        # smaller batches run; the golden rows did
        with suppress(ModelFailure, DeviceOutOfMemory):
            rows = loaded.card.batch_rows(self.max_batch_rows)
            model.run(np.zeros((rows, *model.shape), np.float32))
        return max(opened - before, count * least) + count * max(0, resident_bytes() - opened)

    def _read_verified(self, file: str, digest: str) -> bytes:
        data = self._read(file)
        if digest_of(data) != digest:
            raise StartupError(f"{file}: changed since it was verified; load the model again")
        return data


def _free_unused() -> None:
    """Return freed memory to the system, where the C library can do that; glibc keeps it for later
    allocations.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
