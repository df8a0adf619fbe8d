"""A request and its rows, as the scheduler sees them.

Thread rules: the fields from `closed` to `counters` of a request and `steps_left` of a row are guarded by the lock of
`service.scheduling.admission.Admission`. The event loop sets everything else when it makes the request. After that
only workers change it, under the lock of `service.scheduling.worker_pool.WorkerPool` or while the row is in the
worker's own batch.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import IgnError, InvalidContent, ModelFailure
from service.domain.latents import LARGE, FloatRow, FloatRows
from service.domain.tasks import Result, SchedulingParams, StepOutput, StreamProgress
from service.scheduling.observer import Finished

Event = StepOutput | StreamProgress | Result | IgnError
"""What a caller receives of a request. The last event is a `Result` or an error."""


@dataclass(slots=True)
class Counters:
    """What is open, in all or of one caller.

    Args:
        rows: rows admitted and not finished.
        steps: model steps that these rows still need, at most.
        in_batch: how many of these rows are in a batch.
    """

    rows: int = 0
    steps: int = 0
    in_batch: int = 0


@dataclass(slots=True, eq=False)
class Row:
    """One row of a request and its progress.

    Args:
        request: the request that the row belongs to.
        index: the row's index in the request, from 0.
        steps_left: model steps of the row that are still counted in the `Counters`.
        steps: steps applied so far.
        recorded_count: entries of `StepParams.record` that have been recorded.
        scoring: all steps are applied, and one more model call measures the drift.
        done: the row needs no further model call.
        queue_seq: sequence number of the row's entry in the queue; 0 while it is not in the queue.
        batch_index: the row's index in the batch buffers; −1 while it is in no batch.
    """

    request: "ScheduledRequest"
    index: int
    steps_left: int
    steps: int = 0
    recorded_count: int = 0
    scoring: bool = False
    done: bool = False
    queue_seq: int = 0
    batch_index: int = -1

    @property
    def state(self) -> FloatRow:
        """(C, H, W): the row after its latest step. Valid only while the row is in no batch."""
        request = self.request
        row: FloatRow = (request.outputs if self.steps else request.inputs)[self.index]
        return row

    def steps_to_next_check(self) -> int:
        """Model calls until the row's values are needed on the host, that call included; ≥ 1.

        The first step is measured (`distance`), tolerance and mask need every step, a recorded step is copied, and
        the last step is the result.
        """
        params = self.request.params
        step_params = params.step_params
        if self.steps == 0 or self.scoring or step_params.tolerance is not None or params.keep_mask is not None:
            return 1
        record = step_params.record
        next_check = record[self.recorded_count] if self.recorded_count < len(record) else step_params.steps
        return next_check - self.steps

    def is_recorded(self) -> bool:
        """Whether the caller asked to record the step that the row is at."""
        record = self.request.params.step_params.record
        return self.recorded_count < len(record) and record[self.recorded_count] == self.steps

    def not_finite_error(self) -> IgnError:
        """Why the next step is not finite: the caller's values, if the first step overflows from large ones."""
        if self.steps == 0 and np.abs(self.request.inputs[self.index]).max() > LARGE:
            return InvalidContent(f"f of these rows is not finite: they hold values beyond ±{LARGE:.0f}")
        return ModelFailure("the model gave values that are not finite")

    def record_step(self, row: FloatRow, change: float | None) -> StepOutput:
        """Copy the current step out of the batch buffers, and keep it in the trajectory if it is a recorded one."""
        output = StepOutput(index=self.index, step=self.steps, row=row.copy(), change=change)
        if self.is_recorded():
            self.recorded_count += 1
            self.request.trajectory[self.index].append(output)
        return output

    def finish_steps(self, row: FloatRow, *, converged: bool) -> None:
        """Store the result of the last step. The row is done unless its drift is still to be measured."""
        request = self.request
        request.outputs[self.index] = row
        request.steps[self.index] = self.steps
        request.converged[self.index] = converged
        self.scoring = request.params.step_params.score
        self.done = not self.scoring


_NO_RESULTS: Final[tuple[FloatRows, NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]] = (
    np.empty((0, 0, 0, 0), np.float32),
    np.empty(0, np.int64),
    np.empty(0, np.bool_),
    np.empty(0),
    np.empty(0),
)


class ScheduledRequest:
    """The rows of one request, which are answered together, and their results so far.

    Args:
        inputs: (N, C, H, W) float32; must not change until the request is closed.
        params: how f is applied to them, until when, and for whom.
        arrived: time of submission on the scheduler's clock, in seconds.
    """

    __slots__ = (
        "__weakref__",
        "_rows",
        "arrived",
        "by_rows",
        "closed",
        "converged",
        "counters",
        "deadline",
        "distance",
        "drift",
        "expires",
        "in_batch",
        "inputs",
        "is_single_step",
        "open_rows",
        "outputs",
        "params",
        "row_steps",
        "rows_left",
        "started",
        "steps",
        "timeout_at",
        "trajectory",
    )

    def __init__(self, inputs: FloatRows, params: SchedulingParams, *, arrived: float) -> None:
        n, step_params = len(inputs), params.step_params
        self.inputs, self.params, self.arrived = inputs, params, arrived
        self.deadline = math.inf if params.deadline is None else params.deadline
        self.expires = self.deadline  # set to infinity at the first event of a stream
        self.timeout_at = math.inf  # `deadline` as a time of the event loop; for the event loop alone
        self.started: float | None = None  # when the first row entered a batch
        self.row_steps = step_params.steps + step_params.score  # model steps of each row, at most
        self.is_single_step = (  # and nothing else is to be done after it
            self.row_steps == 1
            and step_params.tolerance is None
            and params.keep_mask is None
            and not (step_params.record or step_params.score or params.streamed)
        )
        self._rows: list[Row] | None = None
        self.by_rows = False  # a batch of whole requests failed with it, so its rows run as rows
        self.rows_left = n  # rows that are not done
        # Guarded by the lock of `Admission`.
        self.closed, self.open_rows, self.in_batch, self.counters = False, n, 0, Counters()
        # Those of a single step come from its batch, if that is one of whole requests.
        self.outputs, self.steps, self.converged, self.distance, self.drift = _NO_RESULTS
        if not self.is_single_step:
            self.allocate()
        # Without recorded steps nothing is appended, so the rows share one list.
        self.trajectory: list[list[StepOutput]] = [[] for _ in range(n)] if step_params.record else [[]] * n

    @property
    def rows(self) -> list[Row]:
        """The rows; workers alone use them. They are made when they are first needed: most single steps need none."""
        if self._rows is None:
            self._rows = [Row(self, i, self.row_steps) for i in range(len(self.inputs))]
        return self._rows

    def drop_rows(self) -> None:
        """Break the reference cycle of a closed request, so that no garbage collection is needed."""
        self._rows = []

    def steps_left(self) -> int:
        """Model steps that the open rows still need, at most. The caller holds the lock of `Admission`."""
        rows = self._rows
        return self.open_rows * self.row_steps if rows is None else sum(row.steps_left for row in rows)

    def allocate(self) -> None:
        """Make the arrays of the results."""
        n = len(self.inputs)
        self.outputs = np.empty(self.inputs.shape, np.float32)
        self.steps, self.converged = np.zeros(n, np.int64), np.zeros(n, np.bool_)
        self.distance = np.zeros(n)
        self.drift = np.zeros(n) if self.params.step_params.score else self.distance

    def min_steps_to_answer(self) -> int:
        """Fewest model steps after which the caller can get what its deadline bounds.

        That is the result or, of a stream, the first event, such as its progress. A row with a tolerance may stop after
        one step.
        """
        step_params = self.params.step_params
        if self.params.streamed:
            return 1
        return (step_params.steps if step_params.tolerance is None else 1) + step_params.score

    def progress(self) -> StreamProgress:
        """Steps of the slowest row, and the number of finished rows."""
        slowest = min((row.steps for row in self.rows if not row.done), default=self.params.step_params.steps)
        n = len(self.rows)
        return StreamProgress(
            steps_done=slowest, steps=self.params.step_params.steps, rows_done=n - self.rows_left, rows=n
        )

    def result(self, now: float) -> Result:
        """The result, once every row is done at time ``now``."""
        started = now if self.started is None else self.started
        return Result(
            rows=self.outputs,
            steps=self.steps,
            converged=self.converged,
            distance=self.distance,
            drift=self.drift if self.params.step_params.score else None,
            trajectory=self.trajectory,
            queue_s=started - self.arrived,
            compute_s=now - started,
        )

    def finished(self, outcome: Result | IgnError, now: float) -> Finished:
        """What observers count of this request, which ended at time ``now``; reports the end to its own observer."""
        started = now if self.started is None else self.started
        code = outcome.error_code if isinstance(outcome, IgnError) else "ok"
        if self.params.observer is not None:
            self.params.observer.scheduled(self.arrived, self.started, now, code)
        return Finished(len(self.inputs), code, started - self.arrived, now - started)


@lru_cache(maxsize=256)
def _after_one_step(rows: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Steps and convergence of rows after their only step; read-only, because requests share them."""
    steps, converged = np.ones(rows, np.int64), np.zeros(rows, np.bool_)
    steps.flags.writeable = converged.flags.writeable = False
    return steps, converged


def whole_requests(rows: Sequence[Row]) -> list[ScheduledRequest]:
    """The requests of these rows if they may run as whole requests and all their rows are there, else none."""
    requests = list(dict.fromkeys([row.request for row in rows]))
    if any(request.by_rows or not request.is_single_step for request in requests):
        return []
    return requests if sum(len(request.inputs) for request in requests) == len(rows) else []


def finish_single_steps(
    requests: Iterable[ScheduledRequest], rows: FloatRows, distance: NDArray[np.float64], now: float
) -> dict[ScheduledRequest, Result]:
    """The results of requests whose rows have had their only step.

    Args:
        requests: in the order of the rows.
        rows: (n, C, H, W): all rows after the step.
        distance: (n) mean |f(x) − x|.
        now: the time.
    """
    results, end = dict[ScheduledRequest, Result](), 0
    for request in requests:
        start, end = end, end + len(request.inputs)
        request.outputs, request.distance = rows[start:end], distance[start:end]
        request.steps, request.converged = _after_one_step(end - start)
        request.rows_left = 0
        results[request] = request.result(now)
    return results


def copy_into_batch(rows: Sequence[Row], buffer: FloatRows) -> None:
    """Copy the states of rows to the start of a batch buffer, in order; they are in no batch yet."""
    parts = list[FloatRows]()
    for start, end in _runs(rows):
        row = rows[start]
        source = row.request.outputs if row.steps else row.request.inputs
        parts.append(source[row.index : row.index + end - start])
    if parts:
        np.concatenate(parts, out=buffer[: len(rows)])
    for index, row in enumerate(rows):
        row.batch_index = index


def commit_single_steps(
    rows: list[Row], buffer: FloatRows, changes: NDArray[np.float64]
) -> tuple[list[Row], list[Row]]:
    """Record the results of rows whose only step the batch has just run.

    Args:
        rows: of the batch, in order.
        buffer: (n, C, H, W): the rows after the step.
        changes: (n) mean |f(x) − x|, valid for rows whose first step this was.

    Returns: the rows that are done now, and those that have more to record. Rows of closed requests are in neither.
    """
    done, others = list[Row](), list[Row]()
    for start, end in _runs(rows):
        row, run, request = rows[start], rows[start:end], rows[start].request
        if request.closed:
            continue
        if not request.is_single_step:
            others += run
            continue
        if not len(request.outputs):
            request.allocate()
        mine = slice(row.index, row.index + len(run))
        source = slice(row.batch_index, row.batch_index + len(run))
        request.outputs[mine], request.distance[mine] = buffer[source], changes[source]
        request.steps[mine] = 1
        for row in run:
            row.steps, row.done = 1, True
        done += run
    return done, others


def _runs(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Start and end of the longest runs of rows that are neighbours in their request and, if they are in one, a batch.

    The rows of a run have all been stepped, or none has.
    """
    if not rows:
        return []
    starts = [0]
    for at in range(1, len(rows)):
        row, last = rows[at], rows[at - 1]
        if row.request is not last.request or not (
            row.index == last.index + 1
            and row.batch_index in (last.batch_index + 1, -1)
            and (row.steps > 0) == (last.steps > 0)
        ):
            starts.append(at)
    return list(zip(starts, [*starts[1:], len(rows)], strict=True))
