"""Runners: how a batch of rows gets through a session, at its exact size or padded to a bucket.

CPU   DirectRunner  exact size, host memory
CUDA  PaddedRunner  padded to a bucket, BoundBuffers on the device

One thread at a time may call a runner. Its sessions are released together with it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from service.artifact.card import INPUT, OUTPUT
from service.domain.latents import FloatRows
from service.domain.model import DeviceBatch

ImageShape = tuple[int, int, int]


class DirectRunner:
    """Runs a batch at its exact size, with `session.run`. Binding the output would cost 3 µs
    more.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, rows: FloatRows) -> FloatRows:
        """Return f(rows)."""
        result: FloatRows = self._session.run([OUTPUT], {INPUT: rows})[0]
        if result.shape != rows.shape:
            raise ValueError(f"the model gave {result.shape} for {rows.shape}")
        return result


class BoundBuffers:
    """The buffers of one bucket (bucket, C, H, W): one array on the host for padding, and two
    buffers on the device.

    ``device`` is onnxruntime's name of the device type, and the device's index.
    """

    # A step reads one device buffer and writes the other, so the rows of the step before survive a
    # step that fails.
    #
    #     rows ─▶ host ─ upload ─▶ a ═ f ═▶ b      steps 1, 3, …; the last one is downloaded
    #                              a ◀═ f ═ b      steps 2, 4, …
    def __init__(
        self, session: Any, shape: tuple[int, int, int, int], device: tuple[str, int]
    ) -> None:
        self._session = session
        self._host = np.zeros(shape, dtype=np.float32)
        a, b = (
            ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *device) for _ in range(2)
        )
        self._buffers = (a, b)
        self._bindings = (_bind(session, a, b), _bind(session, b, a))
        self._current = 0  # index of the buffer that has the rows

    def upload(self, rows: FloatRows) -> None:
        """Copy rows to the device, at most as many as the bucket and of its size, padded with
        zeros.
        """
        self._host[: len(rows)] = rows
        self._host[len(rows) :] = 0.0
        self._current = 0
        self._buffers[0].update_inplace(self._host)
        self._bindings[0].synchronize_inputs()

    def run_step(self) -> None:
        """Apply f to the rows on the device."""
        # `run_with_iobinding` returns after the device has finished, so a failure is raised here,
        # before the swap.
        self._session.run_with_iobinding(self._bindings[self._current])
        self._current = 1 - self._current

    def download(self, out: FloatRows) -> None:
        """Copy the first ``len(out)`` rows to ``out``."""
        self._bindings[1 - self._current].synchronize_outputs()
        out[...] = self._buffers[self._current].numpy()[: len(out)]


class PaddedRunner(DeviceBatch):
    """Runs a batch padded with zeros to the smallest bucket that holds it, in device buffers that
    never move.

    Batches larger than the largest of the ascending ``buckets`` run in several calls. The buffers
    of a bucket, for rows of one size, are made at its first use, in the memory of ``device``,
    onnxruntime's name of a type of device. ``session`` runs the first of them; for each of the
    others, ``make_session`` makes a session of the same model.
    """

    def __init__(
        self,
        session: Any,
        make_session: Callable[[], Any],
        buckets: Sequence[int],
        device: str,
        device_id: int = 0,
    ) -> None:
        self._session = session
        self._make_session = make_session
        self._buckets = tuple(buckets)
        self._device = (device, device_id)
        self._buffers: dict[tuple[int, int, int, int], BoundBuffers] = {}
        self._uploaded: BoundBuffers | None = None

    def __call__(self, rows: FloatRows) -> FloatRows:
        """Return f(rows)."""
        out = np.empty_like(rows)
        largest = self._buckets[-1]
        for start in range(0, len(rows), largest):
            self.upload(rows[start : start + largest])
            self.run_steps()
            self.download(out[start : start + largest])
        return out

    def upload(self, rows: FloatRows) -> None:
        """Copy rows to the device; after ValueError (too many) none are there."""
        self._uploaded = None
        size = next((bucket for bucket in self._buckets if bucket >= len(rows)), None)
        if size is None:
            raise ValueError(f"{len(rows)} rows, and the largest bucket is {self._buckets[-1]}")
        shape = (size, *rows.shape[1:])
        if shape not in self._buffers:
            session = self._make_session() if self._buffers else self._session
            self._buffers[shape] = BoundBuffers(session, shape, self._device)
        self._buffers[shape].upload(rows)
        self._uploaded = self._buffers[shape]

    def run_steps(self, keep_going: Callable[[], bool] | None = None) -> None:
        """See `DeviceBatch.run_steps`."""
        buffers = self._require_uploaded()
        buffers.run_step()
        while keep_going is not None and keep_going():
            buffers.run_step()

    def download(self, out: FloatRows) -> None:
        """Copy the first ``len(out)`` rows to ``out``."""
        self._require_uploaded().download(out)

    def _require_uploaded(self) -> BoundBuffers:
        if self._uploaded is None:
            raise ValueError("no rows are loaded")
        return self._uploaded


def _bind(session: Any, x: Any, y: Any) -> Any:
    """One direction: a session's input bound to one buffer and its output to the other."""
    binding = session.io_binding()
    binding.bind_ortvalue_input(INPUT, x)
    binding.bind_ortvalue_output(OUTPUT, y)
    return binding
