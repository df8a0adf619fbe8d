import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, cast

import pytest

from service.artifact.golden import GoldenReport
from service.domain.errors import Draining, LoadFailed, UnknownModel
from service.domain.latents import NoiseSource
from service.domain.tasks import Result
from service.models.registry import ModelRegistry, ServedModel
from service.models.repository import LoadedModel, Repository
from service.observability.metrics import Metrics
from service.observability.statistics import ModelStatistics
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.onnx_models import make_card
from tests.helpers.serving import marked, params, until_running

SHAPE = (1, 4, 4)


class Instance(FakeModel):
    """An instance of version ``version`` of the model `toy`."""

    device: Literal["cpu", "cuda"] = "cpu"
    provider, fallback_reason, closed = "fake", cast(str | None, None), False

    def __init__(self, version: str, gate: threading.Event | None = None) -> None:
        super().__init__(SHAPE, gate=gate)
        self.card = make_card(version=version, shape=SHAPE)
        self.digest, self.noise = version * 64, NoiseSource(SHAPE)

    def warm_up(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class Stage:
    """A registry over fake models; requests end when `gone` is set."""

    def __init__(self, directory: Path) -> None:
        self.repository = Repository(directory, lambda _: [], default="toy")
        self.gone, self.instances = asyncio.Event(), list[Instance]()
        self.registry = ModelRegistry(
            self.repository,
            serve=self._serve,
            on_activated=lambda loaded: None,
            on_deactivated=lambda ref: None,
            wait_for_requests=self._wait,
        )

    async def _wait(self) -> None:
        await self.gone.wait()

    def _serve(self, loaded: LoadedModel) -> ServedModel:
        statistics = ModelStatistics(Metrics(), loaded.ref)
        scheduler = Scheduler(*loaded.instances, max_batch_rows=8, queue_rows=100, observer=statistics)
        return ServedModel(loaded, scheduler, statistics)

    def model(self, version: str = "1", *, gate: threading.Event | None = None) -> LoadedModel:
        self.instances.append(instance := Instance(version, gate))
        golden = GoldenReport(difference=0.0, spread=0.0, tolerance=1.0, batches=(1,))
        return LoadedModel(
            card=instance.card,
            digest=instance.digest,
            instances=(instance,),
            noise=instance.noise,
            golden=golden,
            device="cpu",
            provider="fake",
        )

    def run(self) -> "asyncio.Task[Result]":
        return asyncio.create_task(self.registry.resolve("toy").scheduler.run(marked(1.0), params()))


def on_stage(tmp_path: Path, play: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Stage(tmp_path)
        try:
            await play(stage)
        finally:
            stage.gone.set()
            await stage.registry.close()
        assert stage.registry.models == {}
        assert all(instance.closed for instance in stage.instances)

    asyncio.run(main())


@pytest.mark.parametrize("end", ["close", "abort_all"])
def test_ending_everything_ends_what_was_leaving_too(tmp_path: Path, end: str) -> None:
    async def play(stage: Stage) -> None:
        gate = threading.Event()
        stage.registry.activate(stage.model(gate=gate))
        held = stage.run()
        await until_running(stage.instances[0])
        stage.registry.activate(stage.model())
        if end == "close":
            closing = asyncio.create_task(stage.registry.close())
        else:
            stage.registry.abort_all()
        with pytest.raises(Draining):
            await held
        gate.set()
        if end == "close":
            await closing

    on_stage(tmp_path, play)


def test_a_directory_that_cannot_be_read_is_a_failed_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object) -> list[str]:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    async def play(stage: Stage) -> None:
        stage.registry.activate(stage.model())
        monkeypatch.setattr(stage.repository, "find", unreadable)
        with pytest.raises(LoadFailed) as caught:
            await stage.registry.load("toy")
        assert caught.value.detail == "toy: Permission denied"
        assert [(entry.ref, entry.state) for entry in await stage.registry.index()] == [("toy/1", "READY")]

    on_stage(tmp_path, play)


def test_while_it_loads_the_index_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = threading.Event(), threading.Event()

    async def play(stage: Stage) -> None:
        def slow(ref: str) -> LoadedModel:
            entered.set()
            assert go.wait(10)
            return stage.model(ref.partition("/")[2])

        stage.registry.activate(stage.model())
        (tmp_path / "toy" / "1").mkdir(parents=True)
        (tmp_path / "toy" / "2").mkdir()
        monkeypatch.setattr(stage.repository, "load", slow)
        loading = asyncio.create_task(stage.registry.load("toy"))
        assert await asyncio.to_thread(entered.wait, 10)
        again = asyncio.create_task(stage.registry.load("toy"))
        found = {entry.ref: entry.state for entry in await stage.registry.index()}
        assert found == {"toy/1": "READY", "toy/2": "LOADING"}
        with pytest.raises(UnknownModel):
            stage.registry.resolve("toy/2")
        assert (await stage.run()).rows[0, 0, 0, 0] == 0.5
        go.set()
        await loading
        assert stage.registry.resolve("toy").ref == "toy/2"
        await again

    on_stage(tmp_path, play)
