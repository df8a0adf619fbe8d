import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from service.artifact.golden import GoldenReport
from service.domain.errors import Draining, LoadFailed, UnknownModel
from service.domain.latents import NoiseSource
from service.domain.tasks import Result, StepParams
from service.models.engine import Batch, Call, Engine
from service.models.registry import ModelRegistry, ServedModel
from service.models.repository import InferenceModel, LoadedModel, Repository
from service.observability.statistics import ModelStatistics
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.onnx_models import make_card
from tests.helpers.serving import Ear, begun, marked, release

SHAPE = (1, 4, 4)


class Stage:
    """A lineup over fake models; nobody has left before `leave` is called."""

    def __init__(self, directory: Path) -> None:
        def unopened(_: bytes) -> list[InferenceModel]:
            raise AssertionError("nothing is read here")

        self.engine = Engine()
        self.repository = Repository(directory, unopened, default="toy")
        self.told: list[str] = []
        self.closed: list[LoadedModel] = []
        self.gone = asyncio.Event()
        self.lineup = ModelRegistry(
            self.repository,
            self.engine,
            run=self._run,
            began=lambda loaded: self.told.append(f"{loaded.ref} began"),
            ended=lambda ref: self.told.append(f"{ref} ended"),
            settled=self._settled,
        )

    async def _settled(self) -> None:
        await self.gone.wait()

    def _run(self, loaded: LoadedModel) -> ServedModel:
        statistics = ModelStatistics(Ear())
        scheduler = Scheduler(loaded.model, max_batch_rows=8, queue_rows=100, observer=statistics)
        return ServedModel(scheduler=scheduler, statistics=statistics)

    def model(self, version: str = "1", model: FakeModel | None = None) -> LoadedModel:
        loaded = LoadedModel(
            card=make_card(version=version, shape=SHAPE),
            digest=version * 64,
            model=model or FakeModel(SHAPE),
            noise=NoiseSource(SHAPE),
            golden=GoldenReport(difference=0.0, spread=0.0, tolerance=1.0, batches=(1,)),
            device="cpu",
            provider="fake",
        )
        return replace(loaded, close=lambda: self.closed.append(loaded))

    def run(self, model: LoadedModel) -> "asyncio.Task[Result]":
        batch = Batch(rows=marked(1.0), step_params=StepParams(steps=1))
        return asyncio.create_task(self.engine.run(model, batch, Call()))


def on_stage(tmp_path: Path, play: Callable[[Stage], Awaitable[None]]) -> Stage:
    async def main() -> Stage:
        stage = Stage(tmp_path)
        try:
            await play(stage)
        finally:
            stage.gone.set()
            await stage.lineup.close()
        assert stage.engine.schedulers == {}
        return stage

    return asyncio.run(main())


def test_the_displaced_one_answers_until_nobody_can_hold_it(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        old, new = stage.model(), stage.model()
        stage.lineup.begin(old)
        stage.lineup.begin(new)
        assert stage.repository.resolve("toy") is new
        assert stage.lineup.schedulers == {"toy/1": stage.engine.schedulers[new]}
        # Got hold of before, asked of only now.
        for model in (old, new):
            assert (await stage.run(model)).rows[0, 0, 0, 0] == 0.5
        assert stage.lineup.statistics(old).counts().rows == stage.lineup.statistics(new).counts().rows == 1
        assert stage.closed == []
        stage.gone.set()
        await asyncio.wait_for(asyncio.gather(*stage.lineup._retiring.values()), 10)
        assert list(stage.engine.schedulers) == [new]
        assert len(stage.closed) == 1

    stage = on_stage(tmp_path, play)
    assert stage.told == ["toy/1 began", "toy/1 began"]
    assert len(stage.closed) == 2


def test_taking_everything_down_ends_what_was_leaving_too(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path)
        model = FakeModel(SHAPE, gate=threading.Event())
        old = stage.model(model=model)
        stage.lineup.begin(old)
        held = stage.run(old)
        await begun(model)
        stage.lineup.begin(stage.model())
        closing = asyncio.create_task(stage.lineup.close())
        with pytest.raises(Draining):
            await held
        release(model)
        await closing
        assert len(stage.closed) == 2
        assert stage.engine.schedulers == {}

    asyncio.run(main())


def test_cutting_off_reaches_what_is_leaving(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        model = FakeModel(SHAPE, gate=threading.Event())
        old = stage.model(model=model)
        stage.lineup.begin(old)
        held = stage.run(old)
        await begun(model)
        stage.lineup.begin(stage.model())
        stage.lineup.cut_off()
        with pytest.raises(Draining):
            await held
        release(model)

    on_stage(tmp_path, play)


def test_a_directory_that_cannot_be_read_is_a_failed_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(_: object) -> list[str]:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    async def play(stage: Stage) -> None:
        stage.lineup.begin(stage.model())
        monkeypatch.setattr(stage.repository, "versions", unreadable)
        monkeypatch.setattr(stage.repository, "find", lambda: unreadable(None))
        with pytest.raises(LoadFailed) as caught:
            await stage.lineup.load("toy")
        assert caught.value.detail == "toy: Permission denied"
        assert [(entry.ref, entry.state) for entry in await stage.lineup.index()] == [("toy/1", "READY")]

    on_stage(tmp_path, play)


def test_while_it_loads_the_index_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = threading.Event(), threading.Event()

    async def play(stage: Stage) -> None:
        def slow(ref: str) -> LoadedModel:
            entered.set()
            assert go.wait(10)
            return stage.model(ref.partition("/")[2])

        stage.lineup.begin(stage.model())
        (tmp_path / "toy" / "1").mkdir(parents=True)
        (tmp_path / "toy" / "2").mkdir()
        monkeypatch.setattr(stage.repository, "load", slow)
        loading = asyncio.create_task(stage.lineup.load("toy"))
        assert await asyncio.to_thread(entered.wait, 10)
        again = asyncio.create_task(stage.lineup.load("toy"))
        found = {entry.ref: entry.state for entry in await stage.lineup.index()}
        assert found == {"toy/1": "READY", "toy/2": "LOADING"}
        with pytest.raises(UnknownModel):
            stage.repository.resolve("toy/2")
        assert (await stage.run(stage.repository.resolve("toy"))).rows[0, 0, 0, 0] == 0.5
        go.set()
        await loading
        assert stage.repository.resolve("toy").ref == "toy/2"
        await again

    on_stage(tmp_path, play)
