"""What the endpoints use: one object, built by `service.app.build_services`, kept in the app's state."""

from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request

from service.api.middleware.in_flight import InFlightRequests
from service.domain.errors import Draining, NotReady, UnavailableError
from service.images.pool import CodecPool, InlineRunner
from service.models.registry import ModelRegistry
from service.models.repository import Repository
from service.observability.metrics import Metrics
from service.settings import Settings

Phase = Literal["loading", "serving", "failed"]


@dataclass(slots=True, kw_only=True)
class AppState:
    """The running parts of one service.

    Args:
        settings: the operator's.
        repository: the model directory.
        registry: the models that serve; empty until all of them are verified.
        codec: threads that decode and encode large pictures.
        inline: runs small codec jobs on the event loop.
        metrics: every Prometheus metric.
        in_flight: the requests in flight, and whether the service drains.
        phase: `loading` until every model is verified; `failed` if one was not.
    """

    settings: Settings
    repository: Repository
    registry: ModelRegistry
    codec: CodecPool
    inline: InlineRunner
    metrics: Metrics
    in_flight: InFlightRequests
    phase: Phase = "loading"

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
        self.metrics.set_queue_rows(self.registry.rows_queued())

    def require_serving(self) -> None:
        """Raise `Draining` or `NotReady` unless requests are accepted; asks no model, so one model never blocks others."""
        if self.in_flight.draining:
            raise Draining("the service is shutting down")
        if self.phase != "serving":
            raise NotReady("models are being loaded" if self.phase == "loading" else "a model could not be loaded")

    def require_ready(self) -> None:
        """Raise `Draining` or `NotReady` with the reason unless every model serves."""
        self.require_serving()
        for ref, model in self.registry.models.items():
            if model.scheduler.all_devices_lost:
                raise NotReady(f"the device of {ref} is lost; only a new process can use it again")
            if not model.scheduler.healthy:
                raise NotReady(f"a worker of {ref} is being replaced")


def app_state(request: Request) -> AppState:
    """The state of the app that received a request."""
    state: AppState = request.app.state.services
    return state
