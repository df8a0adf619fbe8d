"""The protocol of a model, and how its device fails."""

from collections.abc import Callable, Sequence
from typing import Protocol

from service.domain.latents import FloatRows


class Model(Protocol):
    """One network f. `service.runtime.onnx_model.OnnxModel` is the real one; tests bring small fakes."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one row."""
        ...

    @property
    def buckets(self) -> Sequence[int] | None:
        """Batch sizes the device wants to see, ascending; None where every size is as good."""
        ...

    def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
        """One step of f: (N, C, H, W) → same length, same order, in ``out`` if given.

        Raises:
            DeviceOutOfMemory: the device could not hold a batch of this size.
            DeviceLost: the device is gone for this process.
        """
        ...

    def reduce_max_batch(self) -> None:
        """After an out-of-memory failure: give up the top bucket and start a new session."""
        ...


def once() -> bool:
    """No more."""
    return False


class DeviceBatch(Protocol):
    """What a model may offer beside `run`, as its attribute `resident`: rows that stay on the device between steps.

    It may be None, and change after `reduce_max_batch`. Errors are those of `run`.
    """

    def load(self, rows: FloatRows) -> None:
        """Put rows onto the device, in place of those that are there; at most the largest bucket."""
        ...

    def steps(self, more: Callable[[], bool] = once) -> None:
        """Apply f to the rows there, and again as long as ``more``, asked after every step, says so.

        A step that raises leaves them as they were. ``more`` may be called in another thread, while this one waits.
        """
        ...

    def fetch(self, out: FloatRows) -> None:
        """Copy the first rows there, as many as ``out`` has."""
        ...


class DeviceOutOfMemory(Exception):
    """The device could not hold the batch; the scheduler lowers its largest batch and tries again."""


class DeviceLost(Exception):
    """The device fails every call from now on, whatever it is asked; only another process has it back."""
