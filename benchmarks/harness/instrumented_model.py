"""Scheduler and model as the service builds them, without HTTP, and raw onnxruntime beside them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnxruntime as ort

from benchmarks.bench_runtime import raw_session
from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams, StepParams
from service.environment import available_cpus
from service.models.instances import InstanceFactory
from service.models.repository import LoadedModel, Repository
from service.observability.metrics import Metrics
from service.observability.statistics import ModelStatistics
from service.runtime.onnx_model import OnnxModel
from service.scheduling.scheduler import Scheduler
from service.scheduling.wake_rule import wake_rule
from service.settings import Settings

DEADLINE_S = 30.0  # what a request of the service has
BATCH_ROWS = 64


class CountingObserver(ModelStatistics):
    """The metrics of the service, which also count batches and rows."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        super().__init__(metrics, model)
        self.batches = self.rows = 0

    def batch(self, rows: int, padded: int, seconds: float, reason: str) -> None:
        """Count one call of the model."""
        self.batches += 1
        self.rows += rows
        super().batch(rows, padded, seconds, reason)


@dataclass(frozen=True, slots=True)
class InstrumentedModel:
    """A served model without HTTP; ``raw`` runs the same file on the same device with onnxruntime alone."""

    loaded: LoadedModel
    scheduler: Scheduler
    observer: CountingObserver
    raw: Callable[[FloatRows], FloatRows]

    def rows(self, n: int) -> FloatRows:
        """Latents (n, C, H, W)."""
        return self.loaded.noise.rows(0, 0, n)

    async def run(self, rows: FloatRows, steps: int = 1, *, deadline_s: float | None = DEADLINE_S) -> Result:
        """Submit the rows to the scheduler, as an endpoint does between decoding and encoding."""
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        params = SchedulingParams(step_params=StepParams(steps=steps), key="somebody", deadline=deadline)
        return await self.scheduler.run(rows, params)


@contextmanager
def instrumented_model(models: Path, model: str, *, threads: int = 0) -> Iterator[InstrumentedModel]:
    """Load and verify a model and start its scheduler, as the service does.

    Raises:
        StartupError: the model does not load.
    """
    granted = threads or available_cpus()
    settings = Settings(threads=granted, max_batch_rows=BATCH_ROWS)
    repository = Repository(models, InstanceFactory(OnnxModel, settings), default=model)
    loaded = [one for ref, one in repository.load_all().items() if model in (ref, one.card.name)][-1]
    observer = CountingObserver(Metrics(), loaded.ref)
    scheduler = Scheduler(
        *loaded.instances,
        max_batch_rows=BATCH_ROWS,
        queue_rows=4096,
        observer=observer,
        wake_rule=wake_rule(loaded.device, len(loaded.instances), available_cpus()),
    )
    instance = loaded.instances[0]
    assert isinstance(instance, OnnxModel)
    data = (models / loaded.ref / "model.onnx").read_bytes()
    scheduler.start()
    try:
        yield InstrumentedModel(loaded, scheduler, observer, raw_session(data, instance, granted))
    finally:
        scheduler.close()
        loaded.close()


class TimedSession(ort.InferenceSession):  # type: ignore[misc]
    """An onnxruntime session that measures its run time: ``seconds`` is the sum over all sessions."""

    seconds = 0.0

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run and add the time."""
        start = time.perf_counter()
        try:
            return super().run(*args, **kwargs)
        finally:
            TimedSession.seconds += time.perf_counter() - start

    def run_with_iobinding(self, *args: Any, **kwargs: Any) -> Any:
        """Run and add the time."""
        start = time.perf_counter()
        try:
            return super().run_with_iobinding(*args, **kwargs)
        finally:
            TimedSession.seconds += time.perf_counter() - start


@contextmanager
def timed_model(models: Path, model: str) -> Iterator[InstrumentedModel]:
    """A instrumented_model whose model adds up its time within onnxruntime in `TimedSession.seconds`."""
    with patch.object(ort, "InferenceSession", TimedSession), instrumented_model(models, model) as timed:
        yield timed
