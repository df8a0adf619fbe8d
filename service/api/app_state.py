"""The objects that endpoints use, made by `service.app.build_services`, and the accounts of
requests in flight.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from service.domain.accounts import Accounts, Capacity, Rates
from service.domain.errors import (
    Draining,
    NotReady,
    OverShare,
    TooLarge,
    TooManyBytes,
    TooManyConnections,
    UnavailableError,
)
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
    in_flight: "InFlightRequests"
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


class InFlightRequests:
    """Counts the requests in flight and the bytes that they hold, for each caller. Belongs to one
    event loop.

    Bytes are those of bodies, of responses and of the arrays that these are made from.
    `service.server` sets `leaving` (requests are still answered) and `draining` (no longer) once
    each, and waits with `idle`. `ModelRegistry` waits with `wait_for_current` before it closes a
    model.
    """

    def __init__(self, max_requests: Capacity, max_bytes: Capacity) -> None:
        self.leaving = self.draining = False
        self.requests = Accounts(max_requests)
        self.bytes = Accounts(max_bytes)
        self._epoch = Epoch()
        self._past_epochs: list[Epoch] = []

    @property
    def count(self) -> int:
        """Requests in flight."""
        return self.requests.total

    def enter(self, caller: str) -> "Epoch":
        """Count a request that begins; pass the return value to `leave`. Raises `OverShare` or
        `TooManyConnections`.
        """
        if not self.requests.take(caller, 1):
            if self.requests.is_over_share(caller, 1):
                raise OverShare(
                    "too many requests of this caller are in flight (IGN_MAX_INFLIGHT_REQUESTS)"
                )
            raise TooManyConnections("too many requests are in flight")
        epoch = self._epoch
        epoch.requests += 1
        return epoch

    def hold(self, caller: str, held: int, size: int) -> None:
        """Count bytes more of a request that holds some, until it ends.

        Raises `OverShare` or `TooManyBytes` if there is no room for them now, and `TooLarge` if
        there never is.

        Bytes of a body count as they arrive. If an announced length counted, a few slow clients
        could reserve everything without sending a byte.
        """
        capacity = self.bytes.capacity.size
        if held + size > capacity:
            text = (
                f"the request needs {held + size} bytes; the limit, IGN_MAX_INFLIGHT_BYTES, "
                f"is {capacity}"
            )
            raise TooLarge(text)
        if not self.bytes.take(caller, size):
            if self.bytes.is_over_share(caller, size):
                raise OverShare(
                    "the requests of this caller hold too many bytes (IGN_MAX_INFLIGHT_BYTES)"
                )
            raise TooManyBytes("the requests in flight hold too many bytes")

    def leave(self, epoch: "Epoch", caller: str, held_bytes: int) -> None:
        """Count a request that has ended, and the bytes that `hold` counted for it."""
        self.requests.give_back(caller, 1)
        if held_bytes:
            self.bytes.give_back(caller, held_bytes)
        epoch.requests -= 1
        if epoch.requests == 0 and epoch is not self._epoch:
            epoch.over.set()

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        while self.count:
            await self.wait_for_current()

    async def wait_for_current(self) -> None:
        """Wait until every request in flight at the time of the call has ended; later requests do
        not count.

        After it returns, no running request uses a model that lost its name before the call.
        """
        self._past_epochs = [epoch for epoch in (*self._past_epochs, self._epoch) if epoch.requests]
        self._epoch = Epoch()
        for epoch in list(self._past_epochs):
            await epoch.over.wait()


class Epoch:
    """The requests that began between two calls of `InFlightRequests.wait_for_current`."""

    def __init__(self) -> None:
        self.requests = 0
        self.over = asyncio.Event()  # set when no request is left and none can be added
