"""The objects that endpoints use. `service.app.build_services` creates them; the app keeps them in
its state.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from service.api.limits import InFlightRequests
from service.domain.errors import Draining, NotReady, UnavailableError
from service.images.pool import CodecPool
from service.models.registry import ModelChange, ModelRegistry
from service.observability.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from service.observability.tracing import Tracing

Phase = Literal["loading", "serving", "failed"]


@dataclass(slots=True, kw_only=True)
class AppState:
    """The running parts of one service. The registry is empty until all models are verified.

    ``phase`` is `loading` until then, and `failed` if one was not. Without traces ``tracing`` is
    None. Deadlines are times on ``clock``, which gives monotonic seconds. In one of several
    processes, ``change_everywhere`` changes the models of all, as `ModelRegistry.change`.
    """

    settings: Settings
    registry: ModelRegistry
    codec: CodecPool
    metrics: Metrics
    in_flight: InFlightRequests
    tracing: "Tracing | None" = None
    phase: Phase = "loading"
    clock: Callable[[], float] = time.monotonic
    change_everywhere: Callable[[ModelChange], Awaitable[None]] | None = None

    @property
    def ready(self) -> bool:
        """Whether `/readyz` answers 200."""
        try:
            self.require_ready()
        except UnavailableError:
            return False
        return True

    def update_gauges(self) -> None:
        """Set the metrics that show a state, not a count; to be called before they are read."""
        self.metrics.ready.set(self.ready)
        self.metrics.failed_models.set(len(self.registry.failures))
        self.metrics.set_queue_rows(self.registry.rows_queued())
        self.metrics.codec_waiting.set(self.codec.waiting)
        self.metrics.in_flight.set(self.in_flight.count)

    def require_serving(self) -> None:
        """Raise `Draining` or `NotReady` unless requests are accepted; it checks no model, so none
        blocks others.
        """
        if self.in_flight.draining:
            raise Draining("the service is shutting down")
        if self.phase != "serving":
            raise NotReady(
                "models are being loaded"
                if self.phase == "loading"
                else "a model could not be loaded"
            )

    def require_ready(self) -> None:
        """As `require_serving`; also if the service is about to drain, or the workers of a model
        are not healthy.
        """
        self.require_serving()
        if self.in_flight.leaving:
            raise Draining("the service is about to shut down")
        models = self.registry.models.items()
        for ref, scheduler in (
            (ref, each) for ref, model in models for each in model.schedulers.values()
        ):
            if reason := scheduler.device_error:
                raise NotReady(
                    f"the device of {ref} is lost, only a new process can use it again: {reason}"
                )
            if not scheduler.healthy:
                raise NotReady(f"a worker of {ref} is being replaced")
