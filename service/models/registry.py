"""Which models serve, and how one takes another's place while requests go on.

A new version is opened, warmed up and held to its golden rows in a thread. Only then does it take the name, in one
turn of the event loop: whoever asks for the model from then on gets the new one, and whoever got hold of the old one
before is answered by that, wholly. Once all those are gone, the old one is closed. A version that does not load changes
nothing but `failures`.

All of it belongs to the event loop, apart from what is done in threads.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from service.domain.errors import LoadFailed, StartupError, UnknownModel, UnloadRefused
from service.models.engine import Engine
from service.models.repository import LoadedModel, Repository, order
from service.observability.statistics import ModelStatistics
from service.scheduling.scheduler import Scheduler

State = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]

_LOG = logging.getLogger(__name__)
_UNFORESEEN: Final = "loading it failed in a way nobody foresaw; the log says how"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One version in the index.

    Args:
        ref: `name/version`.
        state: READY serves; LOADING will, if it verifies; UNLOADING finishes what it has; UNAVAILABLE does neither.
        reason: why not, or why what serves is not what lies in the directory; else empty.
    """

    ref: str
    state: State
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that runs: what runs it, and what it has done."""

    scheduler: Scheduler
    statistics: ModelStatistics


class ModelRegistry:
    """The models in service.

    Args:
        repository: where they come from.
        engine: told of every model that runs.
        run: makes a scheduler for a model, not yet started.
        began, ended: told which model now answers to its name, and which name nobody answers to any more.
        settled: waits until every request in flight at the time of the call is over.
    """

    def __init__(
        self,
        repository: Repository,
        engine: Engine,
        *,
        run: Callable[[LoadedModel], ServedModel],
        began: Callable[[LoadedModel], None],
        ended: Callable[[str], None],
        settled: Callable[[], Awaitable[None]],
    ) -> None:
        self._repository, self._engine = repository, engine
        self._run, self._began, self._ended, self._settled = run, began, ended, settled
        self._running: dict[LoadedModel, ServedModel] = {}
        self._turn = asyncio.Lock()
        self._loading: set[str] = set()
        self._retiring: dict[LoadedModel, asyncio.Task[None]] = {}
        self.schedulers: dict[str, Scheduler] = {}
        self.failures: dict[str, str] = {}
        """Why a version in the directory does not serve, by `name/version`: one line, with no path outside of it."""

    def begin(self, loaded: LoadedModel) -> None:
        """Have a verified model serve from now on, in place of the one that has its name and version, if there is."""
        running = self._running[loaded] = self._run(loaded)
        running.scheduler.start()
        self._engine.schedulers[loaded] = running.scheduler
        self.schedulers[loaded.ref] = running.scheduler
        self.failures.pop(loaded.ref, None)
        displaced = self._repository.put(loaded)
        self._began(loaded)
        if displaced is not None and displaced is not loaded:
            self._retire(displaced)

    def statistics(self, loaded: LoadedModel) -> ModelStatistics:
        """What a model that runs has done."""
        return self._running[loaded].statistics

    async def load(self, name: str) -> None:
        """Serve what the directory holds of this model: new versions, changed ones anew, and no more those it lost.

        Raises:
            UnknownModel: it holds none.
            LoadFailed: some version does not serve. Those that do now serve, and what served under the name and
                version of one that does not goes on.
        """
        async with self._turn:
            refs = await self._in_directory(name)
            if not refs:
                raise UnknownModel(f"no model {name[:80]!r} in the model directory")
            failed = [ref for ref in refs if not await self._load(ref)]
            self._lose([ref for ref in self._refs(name) if ref not in refs], alone=len(failed) == len(refs))
            self._forget_failures(name, [*refs, *self._refs(name)])
        if failed:
            raise LoadFailed("; ".join(self.failures[ref] for ref in failed))

    async def unload(self, name: str) -> None:
        """Take a model, in all its versions, out of service.

        Raises:
            UnknownModel: no version of it serves.
            UnloadRefused: it is the default model.
        """
        async with self._turn:
            refs = self._refs(name)
            if not refs:
                raise UnknownModel(f"no model {name[:80]!r} in service")
            if name == self._repository.default.partition("/")[0]:
                raise UnloadRefused(f"{name} is the default model, and callers who name none rely on it")
            for ref in refs:
                self._end(ref)
            self._forget_failures(name, [])

    async def index(self) -> list[IndexEntry]:
        """Every version that serves or lies in the directory, in order."""
        try:
            there = await asyncio.to_thread(self._repository.find)
        except (StartupError, OSError) as exc:
            _LOG.warning("the model directory cannot be looked through: %s", exc)
            there = []
        unloading = {model.ref for model in self._retiring}
        refs = {*there, *self._repository.models, *self.failures, *self._loading, *unloading}
        return [self._entry(ref, ref in unloading) for ref in sorted(refs, key=order)]

    def cut_off(self) -> None:
        """Fail whatever is still in flight."""
        for running in self._running.values():
            running.scheduler.close(0)

    async def close(self) -> None:
        """Take everything down."""
        for task in self._retiring.values():
            task.cancel()
        await asyncio.gather(*self._retiring.values(), return_exceptions=True)
        for loaded in list(self._running):
            await self._stop(loaded)

    async def _load(self, ref: str) -> bool:
        """Whether what the directory holds of a version serves now."""
        known = self._repository.models.get(ref)
        if known is not None and known.files == await asyncio.to_thread(self._repository.files, ref):
            self.failures.pop(ref, None)
            return True
        self._loading.add(ref)
        try:
            loaded = await asyncio.to_thread(self._repository.load, ref)
        except Exception as exc:
            self.failures[ref] = _reason(ref, exc)
            _LOG.warning("%s", self.failures[ref])
            return False
        finally:
            self._loading.discard(ref)
        self.begin(loaded)
        return True

    async def _in_directory(self, name: str) -> list[str]:
        try:
            return await asyncio.to_thread(self._repository.versions, name)
        except (StartupError, OSError) as exc:
            raise LoadFailed(_reason(name, exc)) from exc

    def _refs(self, name: str) -> list[str]:
        return [ref for ref, model in self._repository.models.items() if model.card.name == name]

    def _lose(self, refs: list[str], *, alone: bool) -> None:
        """The directory no longer holds these versions; ``alone``: nor one that could take their place."""
        for ref in refs:
            if alone or ref == self._repository.default:
                self.failures[ref] = f"{ref}: its files are gone; it still serves, because callers rely on it"
            else:
                self._end(ref)

    def _forget_failures(self, name: str, keep: list[str]) -> None:
        for ref in [ref for ref in self.failures if ref.partition("/")[0] == name and ref not in keep]:
            del self.failures[ref]

    def _end(self, ref: str) -> None:
        del self.schedulers[ref]
        self._ended(ref)
        self._retire(self._repository.drop(ref))

    def _retire(self, loaded: LoadedModel) -> None:
        self._retiring[loaded] = asyncio.get_running_loop().create_task(self._leave(loaded))

    async def _leave(self, loaded: LoadedModel) -> None:
        try:
            await self._settled()
            await self._stop(loaded)
            _LOG.info("%s@%s has left", loaded.ref, loaded.digest[:12])
        finally:
            self._retiring.pop(loaded, None)

    async def _stop(self, loaded: LoadedModel) -> None:
        # It may wait for the pass that is running; the loop must meanwhile hear of its end.
        await asyncio.to_thread(self._running[loaded].scheduler.close)
        del self._running[loaded], self._engine.schedulers[loaded]
        loaded.close()

    def _entry(self, ref: str, unloading: bool) -> IndexEntry:
        reason = self.failures.get(ref, "")
        if ref in self._repository.models:
            return IndexEntry(ref=ref, state="READY", reason=reason)
        if ref in self._loading:
            return IndexEntry(ref=ref, state="LOADING", reason="")
        if unloading:
            return IndexEntry(ref=ref, state="UNLOADING", reason="finishes what it has")
        return IndexEntry(ref=ref, state="UNAVAILABLE", reason=reason or "not loaded")


def _reason(ref: str, exc: Exception) -> str:
    if isinstance(exc, StartupError):
        return exc.detail
    if isinstance(exc, OSError):
        return f"{ref}: {exc.strerror or type(exc).__name__}"
    _LOG.error("loading %s failed", ref, exc_info=exc)
    return f"{ref}: {_UNFORESEEN}"
