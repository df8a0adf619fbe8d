"""Models that come and go while others load; tests/contract/test_oip_repository.py has what callers
see of it.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from service.domain.errors import Draining, LoadFailed, StartupError, UnloadRefused
from service.models import registry
from service.models.loaded import LoadedModel
from service.models.registry import REFRESH_PAUSE_S, ModelRegistry, ServedModel
from service.models.repository import Repository
from service.models.store import ModelStore
from service.observability.metrics import Metrics
from service.observability.statistics import ModelStatistics
from service.runtime.onnx_model import OnnxModel
from service.scheduling.scheduler import Scheduler
from tests.contract.harness import PATIENCE_S, Gate
from tests.helpers.onnx_models import sample_rows, write_model
from tests.helpers.serving import params


class Stage:
    """A registry over real models behind a gate; requests end when `gone` is set.

    Without `loadable` no model can be loaded; `loading` says that one tries.
    """

    def __init__(self, directory: Path, store: ModelStore | None = None) -> None:
        self.loadable, self.loading = threading.Event(), threading.Event()
        self.loadable.set()
        self.gate, self.gone = Gate(), asyncio.Event()
        self.repository = Repository(directory, self._open, default="toy", store=store)
        self.registry = ModelRegistry(
            self.repository,
            serve=self._serve,
            on_activated=Mock(),
            wait_for_requests=self._wait,
        )

    def _open(self, data: bytes) -> list[OnnxModel]:
        self.loading.set()
        assert self.loadable.wait(PATIENCE_S)
        return [self.gate.model(data, device="cpu")]

    async def _wait(self) -> None:
        await self.gone.wait()

    def _serve(self, loaded: LoadedModel) -> ServedModel:
        statistics = ModelStatistics(Metrics(), loaded.card.ref)
        scheduler = Scheduler(
            *loaded.instances, max_batch_rows=8, queue_rows=100, observe=statistics.take
        )
        return ServedModel(loaded, lambda: scheduler, statistics)


def on_stage(
    directory: Path, play: Callable[[Stage], Awaitable[None]], store: ModelStore | None = None
) -> None:
    write_model(directory)

    async def main() -> None:
        stage = Stage(directory, store)
        try:
            await play(stage)
        finally:
            stage.gone.set()
            await stage.registry.close()
        assert stage.registry.models == {}

    asyncio.run(main())


def test_ending_everything_ends_what_was_leaving_too(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        leaving, staying = (stage.repository.load("toy/1") for _ in range(2))
        stage.registry.activate(leaving)
        with stage.gate:
            scheduler = stage.registry.resolve("toy").scheduler
            held = scheduler.run(sample_rows(1), params())
            assert await asyncio.to_thread(stage.gate.entered.wait, PATIENCE_S)
            stage.registry.activate(staying)
            stage.registry.abort_all()
            with pytest.raises(Draining):
                await held

    on_stage(tmp_path, play)


def test_two_refreshes_of_a_store_are_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore", reason="needs the extra store")
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def play(stage: Stage) -> None:
        # In that module alone: other event loops of this process sleep, too.
        monkeypatch.setattr(
            registry, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep})
        )
        for _ in range(2):
            await stage.registry.load("toy")
        assert waits[0] <= 0 < waits[1] <= REFRESH_PAUSE_S

    write_model(tmp_path / "bucket")
    on_stage(
        tmp_path / "copies", play, ModelStore((tmp_path / "bucket").as_uri(), tmp_path / "copies")
    )


@pytest.mark.parametrize("limit_s", [0.01, 300.0])
def test_a_model_whose_loading_hangs_holds_up_no_other_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_s: float
) -> None:
    monkeypatch.setattr("service.models.registry.LOAD_S", limit_s)

    async def play(stage: Stage) -> None:
        stage.registry.activate(stage.repository.load("toy/1"))
        write_model(tmp_path, "other")
        stage.loadable.clear()
        stage.loading.clear()
        loading = asyncio.create_task(stage.registry.load("other"))
        assert await asyncio.to_thread(stage.loading.wait, PATIENCE_S)
        await stage.registry.load("toy")  # is not changed, so it is not opened
        with pytest.raises(UnloadRefused):
            await stage.registry.unload("toy")
        if limit_s > 1:
            states = {entry.ref: entry.state for entry in await stage.registry.index()}
            assert states == {"toy/1": "READY", "other/1": "LOADING"}
            stage.registry.abort_all()
        with pytest.raises(LoadFailed, match="other/1: not loaded and verified in time"):
            await loading
        monkeypatch.undo()
        stage.loadable.set()
        await stage.registry.load("other")
        assert stage.registry.resolve("other").ref == "other/1"

    on_stage(tmp_path, play)


def test_a_start_with_a_model_that_hangs_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.models.repository.LOAD_S", 0.01)
    stage = Stage(tmp_path)
    write_model(tmp_path)
    stage.loadable.clear()
    with pytest.raises(StartupError, match="toy/1: not loaded and verified in time"):
        stage.repository.load_all()
    stage.loadable.set()
