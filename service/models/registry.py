"""Which models serve now, and how one version replaces another while requests go on.

A thread opens and verifies a new version. Then one turn of the event loop gives it the name: later
requests resolve to the new version, and requests that resolved the old one earlier finish on it.
The registry closes the old version when the last of those requests has ended. A version that does
not load changes only `failures`.

The event loop owns everything here, except the work that `Repository` does in threads.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import repeat
from typing import Any, Final, Literal, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from service.domain.errors import (
    Draining,
    InvalidContent,
    LoadFailed,
    StartupError,
    UnknownModel,
    UnloadRefused,
)
from service.domain.latents import FloatRow, NoiseSource
from service.domain.tasks import KeepMask, Result, SchedulingParams
from service.domain.tiles import Size
from service.models.loaded import LoadedModel
from service.models.repository import LOAD_S, Repository, describe_failure, version_key
from service.models.store import Failures
from service.observability.statistics import ModelStatistics
from service.scheduling.scheduler import Scheduler
from service.scheduling.tiled import OPEN_REQUESTS, RunCodec, TiledRun

State = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]

REFRESH_PAUSE_S: Final = 2.0
"""Seconds from the end of one refresh of the copies of a store to the begin of the next: listings
cost money.
"""
# how often the default model's side may fit into that of an image that is sent without a model
_MAX_REDUCTION: Final = 16
_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class ServedModel:
    """A verified model, the schedulers that run it and its statistics.

    A request resolves its model once and passes this object on, so that it ends on the version on
    which it began. ``make_scheduler`` makes a scheduler for rows of one size: one at once, and at
    their first use those of smaller tiles.
    """

    loaded: LoadedModel
    make_scheduler: Callable[[], Scheduler]
    statistics: ModelStatistics
    # Unix time in seconds, rounded up, at which the set of served models last changed
    since: int = 0

    def __post_init__(self) -> None:
        # Copied, because every request reads them.
        self.card = self.loaded.card
        self.digest = self.loaded.digest
        self.scheduler = self.make_scheduler()
        self.schedulers = {self.card.shape[1:]: self.scheduler}  # by the size of their rows
        self._is_closed = False
        self.noise = NoiseSource(self.card.shape)
        self.ref = self.card.ref
        self.tag = f"{self.ref}@sha256:{self.digest}"

    async def run_tiles(
        self,
        images: Sequence[FloatRow],
        masks: Sequence[KeepMask] | None,
        params: Callable[[], SchedulingParams],
        run_codec: RunCodec,
        on_event: Callable[[Any], None] = lambda _: None,
    ) -> Result:
        """Apply a model that takes any size to images (C, H, W), with masks (1, H, W); see
        `TiledRun`.
        """
        tiled = [
            (image, self.card.tiling(image.shape[1:]), mask)
            for image, mask in zip(images, masks or repeat(None), strict=False)
        ]
        return await TiledRun(
            tiled, params, scheduler_for=self._scheduler_for, run_codec=run_codec, on_event=on_event
        ).run()

    def plan_tiles(self, sizes: Sequence[Size]) -> tuple[int, int]:
        """How many tiles images of these sizes have, and bytes of those that are open at a time."""
        tilings = [self.card.tiling(size) for size in sizes]
        count = sum(tiling.count for tiling in tilings)
        area = max((math.prod(tiling.tile) for tiling in tilings), default=0)
        open_tiles = min(count, OPEN_REQUESTS * self.scheduler.batch_rows)
        # Each is cut from the image, and f makes another one of it.
        return count, 2 * open_tiles * area * self.card.shape[0] * np.dtype(np.float32).itemsize

    def close(self, seconds: float = 5.0) -> None:
        """Close the schedulers, as `Scheduler.close`."""
        self._is_closed = True
        for scheduler in [*self.schedulers.values()]:
            scheduler.close(seconds)

    def _scheduler_for(self, size: Size) -> Scheduler:
        if size not in self.schedulers:
            if self._is_closed:
                raise Draining("the service is shutting down")
            self.schedulers[size] = self.make_scheduler()
        return self.schedulers[size]


class ModelChange(NamedTuple):
    """A call of the model repository, with the parameters of `ModelRegistry.load`; or that of
    `unload`.
    """

    name: str
    loads: bool
    may_be_new: bool = False


class IndexEntry(NamedTuple):
    """One version in the index."""

    ref: str
    state: State  # READY serves; LOADING is being verified; UNLOADING finishes its requests
    # why it does not serve, or why the version that serves is not the one in the directory; else
    # empty
    reason: str


@dataclass(eq=False)
class ModelRegistry:
    """The served models by name and version.

    ``wait_for_requests`` returns when every request in flight at the
    time of the call has ended. ``on_activated`` gets every model that begins to serve under its
    name.
    """

    repository: Repository
    _: KW_ONLY
    serve: Callable[[LoadedModel], ServedModel]
    on_activated: Callable[[LoadedModel], None]
    wait_for_requests: Callable[[], Awaitable[None]]

    def __post_init__(self) -> None:
        # By `name/version`, in order of name and number; a mapping that never changes, but is
        # replaced.
        self.models: Mapping[str, ServedModel] = {}
        self._by_name: dict[str, ServedModel] = {}  # the pinned version, else the highest
        self._failures: Failures = {}
        # One load or unload of a name at a time: a model that hangs does not hold up others.
        self._locks = WeakValueDictionary[str, asyncio.Lock]()
        self._loading: dict[str, asyncio.Timeout] = {}  # by `name/version`
        self._retiring: dict[ServedModel, asyncio.Task[None]] = {}
        # when the next refresh may begin
        self._refreshing = asyncio.Lock()
        self._next_at = 0.0
        self._next_refresh: asyncio.Task[Failures | None] | None = None  # it has not begun

    @property
    def failures(self) -> Failures:
        """Why versions in the directory do not serve, by `name/version`: one line, no path outside
        the directory.
        """
        memories = {ref: model.loaded.memory for ref, model in self.models.items()}
        return self._failures | {
            ref: each.failure for ref, each in memories.items() if each and each.failure
        }

    def resolve(self, name: str | None = None) -> ServedModel:
        """The model `name/version`, the version that `name` stands for, or the default for None.

        Raises UnknownModel if no such model or version serves; the text names those that do.
        """
        wanted = self.repository.default if name is None else name
        model = self.models.get(wanted) or self._by_name.get(wanted)
        if model is None:
            served = ", ".join(self.models) or "none"
            failed = any(wanted in (ref, ref.partition("/")[0]) for ref in self.failures)
            hint = "; it failed to load, and /models says why" if failed else ""
            raise UnknownModel(f"no model {wanted[:80]!r}{hint}; there is {served}")
        return model

    def check_default(self, field: str, size: Size) -> None:
        """Raise `InvalidContent` if an image of a request that names no model, of ``size`` (H, W),
        is far larger than the default takes: that model is not the one that was meant.

        A default that was chosen, or that is the only model, or that takes any size, is not
        questioned.
        """
        card = self.resolve().card
        is_small = min(size) <= _MAX_REDUCTION * max(card.shape[1:])
        if is_small or card.tiles or not self.repository.only_a_guess:
            return
        names = sorted({ref.partition("/")[0] for ref in self.repository.find()})
        if len(names) > 1:
            raise InvalidContent.field(
                "model",
                f"{field} is far larger than the default, {card.ref}, takes; "
                f"name one of {', '.join(names)}",
            )

    async def open(self) -> None:
        """Load, verify and activate every model of the directory; raises as
        `Repository.load_all`.
        """
        models, self._failures = await asyncio.to_thread(self.repository.load_all)
        for loaded in models.values():
            self.activate(loaded)

    def rows_queued(self) -> dict[str, int]:
        """Rows that wait for a batch now, by `name/version`, those of a version that is being
        replaced included.
        """
        waiting = Counter[str]()
        for served in (*self.models.values(), *self._retiring):
            waiting[served.ref] += sum(
                scheduler.rows_queued for scheduler in served.schedulers.values()
            )
        return waiting

    def activate(self, loaded: LoadedModel) -> None:
        """Serve a verified model from now on; it replaces the one of its name and version, if there
        is one.
        """
        model = self.serve(loaded)
        displaced = self.models.get(model.ref)
        self._failures.pop(model.ref, None)
        self._set_models({**self.models, model.ref: model})
        self.on_activated(loaded)
        if displaced is not None:
            self._retire(displaced)

    async def change(self, change: ModelChange) -> None:
        """Load or unload a model; raises as `load` and `unload`."""
        await (
            self.load(change.name, may_be_new=change.may_be_new)
            if change.loads
            else self.unload(change.name)
        )

    async def load(self, name: str, *, may_be_new: bool = False) -> None:
        """Serve what the directory holds of this model: new versions, changed versions again,
        removed ones no longer.

        Where the directory holds copies from a store, they are refreshed first: for a name that
        serves or has a copy, and for any other that ``may_be_new``. Raises `UnknownModel` if the
        directory holds no version of the model, and `LoadFailed` if the store cannot be read or a
        version does not load. The others now serve; a version that served before under the same
        name and number goes on serving.
        """
        # Begun before the lock is held, so those who wait for the lock share it: one refresh runs
        # at a time, and all who ask before the next begins share that.
        refresh = None
        if self.repository.store and (may_be_new or self._refs(name) or await self._find(name)):
            refresh = self._next_refresh or asyncio.create_task(self._refresh_next())
            self._next_refresh = refresh
        async with self._locks.setdefault(name, asyncio.Lock()):
            # it goes on if a caller leaves
            uncopied = {} if refresh is None else await asyncio.shield(refresh)
            if uncopied is None:
                raise LoadFailed("the store of the models cannot be read; the log says why")
            refs = await self._find(name)
            if not refs:
                raise UnknownModel(f"no model {name[:80]!r} in the model directory")
            failed = [ref for ref in refs if not await self._load(ref)]
            for ref in [ref for ref in self._refs(name) if ref not in refs]:
                # nothing can replace it
                if len(failed) == len(refs) or self.repository.is_named(ref):
                    self._failures[ref] = (
                        f"{ref}: its files are gone; it still serves, because callers rely on it"
                    )
                else:
                    self._deactivate(ref)
            self._forget_failures(name, [*refs, *self._refs(name)])
            for ref in [ref for ref in uncopied if ref.startswith(f"{name}/")]:
                self._failures[ref] = uncopied[ref]
                failed.append(ref)
        if failed:
            raise LoadFailed("; ".join(self._failures[ref] for ref in failed))

    async def _find(self, name: str) -> list[str]:
        try:
            return await asyncio.to_thread(self.repository.find, name)
        except (StartupError, OSError) as exc:
            raise LoadFailed(describe_failure(name, exc)) from exc

    async def _refresh_next(self) -> Failures | None:
        """As `Repository.refresh`; None if the store cannot be read."""
        async with self._refreshing:
            await asyncio.sleep(self._next_at - time.monotonic())
            self._next_refresh = None  # what changes from now on may not be in this listing
            try:
                return await asyncio.wrap_future(self.repository.start_refresh())
            except StartupError as exc:
                _LOG.warning("%s", exc.detail)
                return None
            finally:
                self._next_at = time.monotonic() + REFRESH_PAUSE_S

    async def unload(self, name: str) -> None:
        """Stop serving a model; raises UnknownModel if no version of it serves, UnloadRefused if it
        is the default.
        """
        async with self._locks.setdefault(name, asyncio.Lock()):
            refs = self._refs(name)
            if not refs:
                raise UnknownModel(f"no model {name[:80]!r} in service")
            if name == self.repository.default.partition("/")[0]:
                raise UnloadRefused(
                    f"{name} is the default model, and callers who name none rely on it"
                )
            for ref in refs:
                self._deactivate(ref)
            self._forget_failures(name, [])

    async def index(self) -> list[IndexEntry]:
        """Every version that serves or lies in the directory, in order."""
        try:
            on_disk = await asyncio.to_thread(self.repository.find)
        except (StartupError, OSError) as exc:
            _LOG.warning("the model directory cannot be read: %s", exc)
            on_disk = []
        failures = self.failures
        absent = {**dict.fromkeys(on_disk, "not loaded"), **failures}
        entries = {ref: IndexEntry(ref, "UNAVAILABLE", absent[ref]) for ref in absent}
        for model in self._retiring:
            entries[model.ref] = IndexEntry(model.ref, "UNLOADING", "finishes what it has")
        for ref in self._loading:
            entries[ref] = IndexEntry(ref, "LOADING", "")
        for ref in self.models:
            entries[ref] = IndexEntry(ref, "READY", failures.get(ref, ""))
        return [entries[ref] for ref in sorted(entries, key=version_key)]

    def abort_all(self) -> None:
        """Fail every request in flight, with `Draining` if it runs a model, without waiting for
        what runs.
        """
        for limit in self._loading.values():
            if not limit.expired():
                limit.reschedule(0.0)
        for model in (*self.models.values(), *self._retiring):
            model.close(0)

    async def close(self, seconds: float = 5.0) -> None:
        """Stop and close every model; each waits at most so long for the step that runs."""
        for task in self._retiring.values():
            task.cancel()
        await asyncio.gather(*self._retiring.values(), return_exceptions=True)
        models = [*self._retiring, *self.models.values()]
        self._retiring.clear()
        self._set_models({})
        for model in models:
            await self._close(model, seconds)

    def _set_models(self, models: Mapping[str, ServedModel]) -> None:
        self.models = {ref: models[ref] for ref in sorted(models, key=version_key)}
        pins = self.repository.pins
        self._by_name = {  # of several, the last and highest one wins
            model.card.name: model
            for model in self.models.values()
            if pins.get(model.card.name, model.card.version) == model.card.version
        }
        for (
            model
        ) in self.models.values():  # of all: a name without a version may stand for another one now
            model.since = math.ceil(time.time())

    async def _load(self, ref: str) -> bool:
        served = self.models.get(ref)
        if served is not None and served.loaded.files == await asyncio.to_thread(
            self.repository.files, ref
        ):
            self._failures.pop(ref, None)
            return True
        try:
            async with asyncio.timeout(LOAD_S) as self._loading[ref]:
                loaded = await asyncio.wrap_future(self.repository.start_load(ref))
        except Exception as exc:
            self._failures[ref] = describe_failure(ref, exc)
            _LOG.warning("%s", self._failures[ref])
            return False
        finally:
            self._loading.pop(ref, None)
        self.activate(loaded)
        return True

    def _refs(self, name: str) -> list[str]:
        return [ref for ref, model in self.models.items() if model.card.name == name]

    def _forget_failures(self, name: str, keep: list[str]) -> None:
        self._failures = {
            ref: reason
            for ref, reason in self._failures.items()
            if ref.partition("/")[0] != name or ref in keep
        }

    def _deactivate(self, ref: str) -> None:
        models = dict(self.models)
        model = models.pop(ref)
        self._set_models(models)
        self._retire(model)

    def _retire(self, model: ServedModel) -> None:
        self._retiring[model] = asyncio.get_running_loop().create_task(self._drain_and_close(model))

    async def _drain_and_close(self, model: ServedModel) -> None:
        await self.wait_for_requests()
        await self._close(model)
        # a task that `close` cancels earlier leaves its model there, for `close` to close
        del self._retiring[model]
        _LOG.info("%s is closed", model.tag)

    async def _close(self, model: ServedModel, seconds: float = 5.0) -> None:
        # In a thread, because it waits for the model call that runs, whose end the event loop must
        # receive.
        await asyncio.to_thread(model.close, seconds)
        model.loaded.close()
