"""What the endpoints are handed: one object, made by the composition root, found in the app's state."""

from dataclasses import dataclass, field
from typing import Literal

from starlette.requests import Request

from service.api.middleware.in_flight import InFlightRequests
from service.domain.errors import Draining, NotReady, UnavailableError
from service.images.pool import CodecPool, InlineRunner
from service.models.engine import Engine
from service.models.registry import ModelRegistry
from service.models.repository import Repository
from service.observability.metrics import Metrics
from service.settings import Settings

Phase = Literal["loading", "serving", "failed"]


@dataclass(slots=True, kw_only=True)
class AppState:
    """The running parts of one app.

    Args:
        settings, repository, engine, codec, metrics, traffic: as their names say.
        together: for what is too small for the codec pool.
        lineup: which models serve; empty until they are verified.
        phase: `loading` until every model is verified; `failed` if one was not.
    """

    settings: Settings
    repository: Repository
    engine: Engine
    codec: CodecPool
    metrics: Metrics
    traffic: InFlightRequests
    lineup: ModelRegistry
    together: InlineRunner = field(default_factory=InlineRunner)
    phase: Phase = "loading"

    @property
    def ready(self) -> bool:
        """Whether requests can be served now."""
        try:
            self.require_ready()
        except UnavailableError:
            return False
        return True

    def require_ready(self) -> None:
        """Raise `NotReady` or `Draining` with the reason unless requests can be served now."""
        if self.traffic.draining:
            raise Draining("the service is shutting down")
        if self.phase != "serving":
            raise NotReady("models are being loaded" if self.phase == "loading" else "a model could not be loaded")
        for ref, scheduler in self.lineup.schedulers.items():
            if scheduler.lost:
                raise NotReady(f"the device of {ref} is lost, and only another process has it back")
            if not scheduler.healthy:
                raise NotReady(f"the worker of {ref} is being replaced")


def services(request: Request) -> AppState:
    """The services behind a request's app."""
    found: AppState = request.app.state.services
    return found
