"""Stand for the scheduler and the statistics of a model in the engine's process."""

from collections.abc import Sequence

from service.domain.errors import IgnError
from service.domain.latents import FloatRows
from service.domain.tasks import SchedulingParams
from service.engine.connection import DeliverMany, EngineConnection, RemoteRequest
from service.observability.statistics import Counts
from service.scheduling.interface import Deliver, Event, RowScheduler, check_rows


class RemoteScheduler(RowScheduler[RemoteRequest]):
    """A scheduler in the engine's process.

    Args:
        connection: to that process.
        model: its number there.
        shape: (C, H, W) of a row.
    """

    def __init__(self, connection: EngineConnection, model: int, shape: tuple[int, int, int]) -> None:
        self._connection, self._model, self._shape = connection, model, shape

    @property
    def healthy(self) -> bool:
        """Whether it can serve, as the engine said last."""
        return not self._connection.silent and self._connection.state(self._model).healthy

    @property
    def all_devices_lost(self) -> bool:
        """Whether the last device is lost."""
        return self._connection.state(self._model).all_devices_lost

    @property
    def device_error(self) -> str:
        """Why the latest device was lost."""
        return self._connection.state(self._model).device_error

    @property
    def rows_queued(self) -> int:
        """0: the rows wait in the engine, which counts them."""
        return 0

    def start(self) -> None:
        """Do nothing: the engine has started it."""

    def close(self, seconds: float = 5.0) -> None:
        """Do nothing: the engine closes it."""

    async def check_capacity(self, rows: int) -> None:
        """Ask the engine."""
        await self._connection.call("check_capacity", self._model, rows)

    def begin(self, rows: FloatRows, params: SchedulingParams, deliver: Deliver, *, streamed: bool) -> RemoteRequest:
        """Send the rows to the engine; what it refuses is delivered as an error."""
        check_rows(rows, params, self._shape)
        return self._connection.begin(self._model, rows, params, deliver, streamed=streamed)

    def begin_many(
        self, calls: Sequence[tuple[FloatRows, SchedulingParams]], deliver: DeliverMany
    ) -> list[RemoteRequest | IgnError]:
        """Send several requests, and call ``deliver`` with those that end together."""
        begun: list[RemoteRequest | IgnError] = []
        for rows, params in calls:
            try:
                request = self.begin(rows, params, _never, streamed=False)
            except IgnError as exc:
                begun.append(exc)
            else:
                request.deliver_many = deliver
                begun.append(request)
        return begun

    def cancel(self, handle: RemoteRequest) -> None:
        """Cancel a request in the engine."""
        self._connection.cancel(handle)


class RemoteStatistics:
    """The statistics of a model in the engine's process.

    Args:
        connection: to that process.
        model: its number there.
    """

    def __init__(self, connection: EngineConnection, model: int) -> None:
        self._connection, self._model = connection, model

    async def read(self) -> Counts:
        """All counts, up to now."""
        counts: Counts = await self._connection.call("statistics", self._model)
        return counts

    def tensors(self, read_s: float, written_s: float) -> None:
        """Add the times of a successful request."""
        self._connection.tensors(self._model, read_s, written_s)


def _never(event: Event) -> None:
    """Stands where events are delivered together."""
    raise AssertionError(event)
