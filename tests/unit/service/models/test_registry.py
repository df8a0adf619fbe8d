import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from service.domain.errors import Draining, LoadFailed, UnknownModel
from service.domain.tasks import Result
from service.models.registry import ModelRegistry, ServedModel
from service.models.repository import LoadedModel, Repository
from service.observability.metrics import Metrics
from service.observability.statistics import ModelStatistics
from service.runtime.onnx_model import OnnxModel
from service.scheduling.scheduler import Scheduler
from tests.contract.harness import Gate
from tests.helpers.device_fakes import is_closed
from tests.helpers.onnx_models import reference, sample_rows, write_model
from tests.helpers.serving import params


class Stage:
    """A registry over real models behind a gate; requests end when `gone` is set."""

    def __init__(self, directory: Path) -> None:
        self.gate, self.gone, self.opened = Gate(), asyncio.Event(), list[OnnxModel]()
        self.repository = Repository(directory, self._open, default="toy")
        self.registry = ModelRegistry(
            self.repository,
            serve=self._serve,
            on_activated=lambda loaded: None,
            on_deactivated=lambda ref: None,
            wait_for_requests=self._wait,
        )

    def _open(self, data: bytes) -> list[OnnxModel]:
        self.opened.append(self.gate.model(data, device="cpu"))
        return self.opened[-1:]

    async def _wait(self) -> None:
        await self.gone.wait()

    def _serve(self, loaded: LoadedModel) -> ServedModel:
        statistics = ModelStatistics(Metrics(), loaded.ref)
        scheduler = Scheduler(*loaded.instances, max_batch_rows=8, queue_rows=100, observer=statistics)
        return ServedModel(loaded, scheduler, statistics)

    def run(self) -> "asyncio.Task[Result]":
        return asyncio.create_task(self.registry.resolve("toy").scheduler.run(sample_rows(1), params()))


def on_stage(directory: Path, play: Callable[[Stage], Awaitable[None]]) -> None:
    write_model(directory)

    async def main() -> None:
        stage = Stage(directory)
        try:
            await play(stage)
        finally:
            stage.gone.set()
            await stage.registry.close()
        assert stage.registry.models == {}
        assert all(map(is_closed, stage.opened))

    asyncio.run(main())


@pytest.mark.parametrize("end", ["close", "abort_all"])
def test_ending_everything_ends_what_was_leaving_too(tmp_path: Path, end: str) -> None:
    async def play(stage: Stage) -> None:
        leaving, staying = (stage.repository.load("toy/1") for _ in range(2))
        stage.registry.activate(leaving)
        with stage.gate:
            held = stage.run()
            assert await asyncio.to_thread(stage.gate.entered.wait, 10)
            stage.registry.activate(staying)
            if end == "close":
                closing = asyncio.create_task(stage.registry.close())
            else:
                stage.registry.abort_all()
            with pytest.raises(Draining):
                await held
        if end == "close":
            await closing

    on_stage(tmp_path, play)


def test_a_directory_that_cannot_be_read_is_a_failed_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object) -> list[str]:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    async def play(stage: Stage) -> None:
        stage.registry.activate(stage.repository.load("toy/1"))
        monkeypatch.setattr(stage.repository, "find", unreadable)
        with pytest.raises(LoadFailed) as caught:
            await stage.registry.load("toy")
        assert caught.value.detail == "toy: Permission denied"
        assert [(entry.ref, entry.state) for entry in await stage.registry.index()] == [("toy/1", "READY")]

    on_stage(tmp_path, play)


def test_while_it_loads_the_index_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = threading.Event(), threading.Event()

    async def play(stage: Stage) -> None:
        load = stage.repository.load

        def slow(ref: str) -> LoadedModel:
            entered.set()
            assert go.wait(10)
            return load(ref)

        stage.registry.activate(load("toy/1"))
        write_model(tmp_path, version="2")
        monkeypatch.setattr(stage.repository, "load", slow)
        loading = asyncio.create_task(stage.registry.load("toy"))
        assert await asyncio.to_thread(entered.wait, 10)
        again = asyncio.create_task(stage.registry.load("toy"))
        found = {entry.ref: entry.state for entry in await stage.registry.index()}
        assert found == {"toy/1": "READY", "toy/2": "LOADING"}
        with pytest.raises(UnknownModel):
            stage.registry.resolve("toy/2")
        np.testing.assert_allclose((await stage.run()).rows, reference(sample_rows(1)), atol=1e-6)
        go.set()
        await loading
        assert stage.registry.resolve("toy").ref == "toy/2"
        await again

    on_stage(tmp_path, play)
