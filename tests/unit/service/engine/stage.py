"""An engine over fake models and front ends, on one event loop."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from service.artifact.golden import GoldenReport
from service.domain.latents import NoiseSource
from service.engine.client import RemoteRegistry
from service.engine.engine_host import EngineHost
from service.engine.links import LinkReceiver, control_pair, link
from service.models.registry import ModelRegistry, ServedModel
from service.models.repository import LoadedModel, Repository
from service.observability.metrics import Metrics
from service.observability.statistics import ModelStatistics
from service.scheduling.scheduler import Scheduler
from tests.helpers.fakes import FakeModel
from tests.helpers.onnx_models import make_card

SHAPE = (1, 4, 4)
PATIENCE_S = 20.0


def loaded(model: FakeModel, version: str = "1") -> LoadedModel:
    """A verified model that runs ``model``."""
    return LoadedModel(
        card=make_card(version=version, shape=model.shape),
        digest=version * 64,
        instances=(model,),
        noise=NoiseSource(model.shape),
        golden=GoldenReport(difference=0.0, spread=0.0, tolerance=1.0, batches=(1,)),
        device="cpu",
        provider="fake",
    )


class Engine:
    """An engine; its directory holds what `on_disk` says."""

    def __init__(self, directory: Path, *, queue_rows: int = 100) -> None:
        self.repository = Repository(directory, lambda _: [], default="toy")
        self.on_disk: dict[str, LoadedModel] = {}
        self.repository.load = lambda ref: self.on_disk[ref]  # type: ignore[method-assign]
        self.repository.versions = lambda name: [ref for ref in self.on_disk if ref.startswith(f"{name}/")]  # type: ignore[method-assign]
        self.repository.load_all = lambda: self.on_disk  # type: ignore[method-assign]
        self.host = EngineHost()
        self.registry = ModelRegistry(
            self.repository,
            serve=self._serve,
            on_activated=lambda _: None,
            on_deactivated=lambda _: None,
            wait_for_requests=self.host.wait_for_requests,
        )
        self._queue_rows = queue_rows
        self.control, self._theirs = control_pair()
        self._links = LinkReceiver(self._theirs, self.host.add)

    def _serve(self, found: LoadedModel) -> ServedModel:
        statistics = ModelStatistics(Metrics(), found.ref)
        scheduler = Scheduler(*found.instances, max_batch_rows=8, queue_rows=self._queue_rows, observer=statistics)
        return ServedModel(found, scheduler, statistics)

    async def serve(self, *models: LoadedModel) -> None:
        self.on_disk.update({model.ref: model for model in models})
        await self.registry.open()
        self.host.open(self.registry)

    async def close(self) -> None:
        self._links.close()
        await self.host.close()
        await self.registry.close()
        self.control.close()
        self._theirs.close()


@dataclass
class Front:
    """A front end; `requests_end` says when those that are in flight have ended."""

    requests_end: asyncio.Event = field(default_factory=asyncio.Event)
    serving: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.requests_end.set()
        self.control, self._theirs = control_pair()
        self.registry = RemoteRegistry(
            "toy", self._theirs, on_serving=self.serving.append, wait_for_requests=self._wait
        )

    async def _wait(self) -> None:
        await self.requests_end.wait()

    async def open(self, engine: Engine) -> ServedModel:
        """Link it; returns the default model."""
        link(self.control, engine.control)
        await asyncio.wait_for(self.registry.open(), PATIENCE_S)
        await until(lambda: bool(self.serving and self.serving[-1]))
        return self.registry.resolve()

    async def close(self) -> None:
        await self.registry.close()
        self.control.close()
        self._theirs.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - other processes and threads bring it about
            await asyncio.sleep(0.005)


def play(
    directory: Path, script: Callable[[Engine, Front, ServedModel], Awaitable[None]], model: FakeModel, **options: int
) -> None:
    """Run a script with an engine that serves ``model``, and a front end that is linked to it."""

    async def main() -> None:
        engine, front = Engine(directory, **options), Front()
        try:
            await engine.serve(loaded(model))
            await asyncio.wait_for(script(engine, front, await front.open(engine)), 3 * PATIENCE_S)
        finally:
            if model.gate is not None:
                model.gate.set()
            await front.close()
            await engine.close()

    asyncio.run(main())
