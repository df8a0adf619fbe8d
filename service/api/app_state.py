"""The objects that endpoints use, made by `service.app.build_services`."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from service.domain.accounts import InFlightRequests, Rates
from service.domain.errors import Draining, NotReady, UnavailableError
from service.images.pool import CodecPool
from service.models.registry import ModelChange, ModelRegistry, ServedModel
from service.observability.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from service.observability.tracing import Tracing

# percentiles of the card that are exported for comparison with ign_distance
_REFERENCE: Final = (50, 90, 99)

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
    rates: Rates
    tracing: "Tracing | None" = None
    phase: Phase = "loading"
    clock: Callable[[], float] = time.monotonic
    change_everywhere: Callable[[ModelChange], Awaitable[None]] | None = None
    described: Mapping[str, ServedModel] | None = None
    """Those whose metrics are set."""

    def update_gauges(self) -> None:
        """Set the metrics that show a state, not a count; to be called before they are read."""
        try:
            self.require_ready()
            self.metrics.ready.set(1)
        except UnavailableError:
            self.metrics.ready.set(0)
        if self.described is not self.registry.models:
            self._describe_models()
        self.metrics.failed_models.set(len(self.registry.failures))
        self.metrics.set_queue_rows(self.registry.rows_queued())
        self.metrics.codec_waiting.set(self.codec.waiting)
        self.metrics.in_flight.set(self.in_flight.count)

    def _describe_models(self) -> None:
        self.described = self.registry.models
        metrics = self.metrics
        for gauge in (metrics.model_info, metrics.instances, metrics.reference):
            gauge.clear()
        for ref, model in self.described.items():
            label = metrics.model_label(ref)
            loaded = model.loaded
            metrics.model_info.labels(
                label, loaded.digest[:12], loaded.provider, loaded.golden.reproducible
            ).set(1)
            metrics.instances.labels(label).set(len(loaded.instances))
            quantiles = loaded.card.distance_quantiles or ()
            for percent in _REFERENCE if quantiles else ():
                metrics.reference.labels(label, str(percent)).set(quantiles[percent])

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
        """As `require_serving`; also if the service is about to drain, or a model has lost its
        device.
        """
        self.require_serving()
        if self.in_flight.leaving:
            raise Draining("the service is about to shut down")
        for model in self.registry.models.values():
            require_device(model)


def require_device(model: ServedModel) -> None:
    """Raise `NotReady` if the model has lost its device."""
    for scheduler in model.schedulers.values():
        if reason := scheduler.device_error:
            raise NotReady(
                f"the device of {model.ref} is lost, only a new process can use it again: {reason}"
            )
