"""The protocol of a model, and how its device fails."""

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np

from service.domain.latents import FloatRows


class Model(Protocol):
    """One network f on one device. `service.runtime.onnx_model.OnnxModel` implements it; tests have
    small fakes.
    """

    @property
    def buckets(self) -> Sequence[int] | None:
        """Batch sizes that the device runs, ascending; None if it runs every size equally well."""

    def run(self, rows: FloatRows) -> FloatRows:
        """One step of f for rows (N, C, H, W): an array of the same shape and order.

        Raises DeviceOutOfMemory, DeviceLost, or anything else that is about these rows.
        """

    def reduce_max_batch(self) -> None:
        """After `DeviceOutOfMemory`: give up the largest bucket and start a new session."""


class ModelMemory(Protocol):
    """The memory of a model that is open only while it is used, or while no other model needs the
    room.

    Any thread may call it. ``failure`` says why it could not be opened; empty if it could. Each of
    ``callers`` tells the fairness keys of those that have rows for the model now; any thread may
    call it. While ``is_claimed`` is true, another caller's model needs the room: release this one
    after the current step.
    """

    failure: str
    callers: list[Callable[[], Collection[str]]]
    is_claimed: bool

    def acquire(self) -> bool:
        """Open the model and keep it open until `release`. Waits for room; returns False if no
        caller has rows then.

        If it cannot be opened, `Model.run` raises the reason.
        """

    def release(self) -> None:
        """End one `acquire` that returned True; without any, the model may close."""

    def close(self) -> None:
        """Close the model for good."""

    def seconds_to_open(self, caller: str) -> float:
        """How long a new row of this caller would wait for the model; 0 if it is open."""


class DeviceOutOfMemory(Exception):
    """The device could not hold the batch. The scheduler lowers its largest batch and tries
    again.
    """


class DeviceLost(Exception):
    """The device fails every call of this process from now on; a new process can use it again."""


def largest_batch(model: Model, max_rows: int) -> int:
    """Most rows of a batch: ``max_rows``, or the model's largest bucket if that is less."""
    return max_rows if model.buckets is None else min(max_rows, model.buckets[-1])


def bucket_of(count: int, buckets: Sequence[int] | None) -> int:
    """The smallest bucket for so many rows; ``count`` itself without one that holds them."""
    index = bisect_left(buckets or (), count)
    return buckets[index] if buckets and index < len(buckets) else count


def padded(rows: FloatRows, buckets: Sequence[int] | None) -> FloatRows:
    """The rows (N, C, H, W), up to their bucket followed by copies of the first one."""
    # A real row: any other values could be out of the model's range.
    missing = bucket_of(len(rows), buckets) - len(rows)
    return np.concatenate((rows, np.repeat(rows[:1], missing, axis=0))) if missing else rows
