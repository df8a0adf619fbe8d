"""What the steps of a batch mean for its slices: which rows are done, which converge, and what is recorded."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from service.domain.latents import FloatRows
from service.scheduling.lane import mean_changes
from service.scheduling.request import Batch, Outputs, Slice


def commit(batch: Batch) -> tuple[list[Slice], Outputs]:
    """Take a delivered batch as the rows of its slices, and record its last step.

    Returns the slices of open requests, cut where their rows part, and the steps that are recorded or streamed.
    """
    assert batch.y is not None  # noqa: S101 - it was run
    assert batch.changes is not None  # noqa: S101
    slices, outputs, at = list[Slice](), Outputs(), 0
    for piece in _cut_at_lost(batch):
        mine = slice(at, at + piece.count)
        at += piece.count
        if piece.request.closed:
            continue
        piece.steps += batch.done - 1  # of which no value was needed
        if batch.lost and any(start <= mine.start < end for start, end in batch.lost):
            piece.rows = batch.y[mine]
            slices.append(piece)
            continue
        parts = _commit(piece, batch.y[mine], batch.changes[mine], outputs)
        if piece.request.exact and not (parts[0] is piece and piece.done):
            parts = [_commit_rest(part, outputs) for part in parts]
        slices += parts
    return slices, outputs


def _cut_at_lost(batch: Batch) -> Sequence[Slice]:
    ends = sorted({index for call in batch.lost for index in call})
    if not ends:
        return batch.slices
    slices, at = list[Slice](), 0
    for piece in batch.slices:
        for end in ends:
            if 0 < end - at < piece.count:
                head = piece.cut(end - at)
                slices.append(head)
                at += head.count
        slices.append(piece)
        at += piece.count
    return slices


def _commit(piece: Slice, y: FloatRows, changes: NDArray[np.float64], outputs: Outputs) -> Sequence[Slice]:
    request = piece.request
    if request.is_plain and piece.count == len(request.inputs):
        request.outputs, request.distance = y, changes
        steps = request.params.step_params.steps  # more than 1 if the request is exact
        request.steps, request.converged = np.full(piece.count, steps), np.zeros(piece.count, np.bool_)
        piece.steps, piece.done = 1, True
        return (piece,)
    step_params, mask = request.params.step_params, request.params.keep_mask
    mine = slice(piece.start, piece.start + piece.count)
    if piece.scoring:  # this step was the extra one that measures the drift
        request.drift[mine] = changes
        piece.done = True
        return (piece,)
    if piece.steps == 0:
        request.distance[mine] = changes  # of f(x) itself, before the mask
    if mask is not None:
        y = np.where(mask[mine], request.inputs[mine], y)
        changes = mean_changes(y, piece.rows)
    piece.rows = y
    piece.steps += 1
    is_last = piece.steps == step_params.steps
    if step_params.tolerance is not None or step_params.record or (is_last and request.params.streamed):
        return _observe(piece, changes, outputs, is_last=is_last)
    if is_last:
        piece.finish(converged=False)
    return (piece,)


def _commit_rest(piece: Slice, outputs: Outputs) -> Slice:
    """Record the further steps of an exact request, which change nothing."""
    unchanged = np.zeros(piece.count)
    while not piece.done:
        piece.steps += piece.steps_to_next_check() - 1
        # All rows are alike: either all of them converge, or none.
        (piece,) = _commit(piece, piece.rows, unchanged, outputs)
    return piece


def _observe(piece: Slice, changes: NDArray[np.float64], outputs: Outputs, *, is_last: bool) -> list[Slice]:
    request, parts, near = piece.request, list[Slice](), [False] * piece.count
    streamed, tolerance = request.params.streamed, request.params.step_params.tolerance
    if tolerance is not None:
        near = (changes < tolerance).tolist()
    for converged, run in groupby(near):
        count = len(list(run))
        part = piece if count == piece.count else piece.cut(count)
        if is_last or converged:
            part.finish(converged=converged)
        if part.is_recorded() or (streamed and (is_last or converged)):
            outputs += [(request, output) for output in part.record(changes[:count])]
        changes = changes[count:]
        parts.append(part)
    return parts
