"""onnxruntime IO binding: buffers on the device that a session reads and writes without a copy to the host."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import onnxruntime as ort

from service.artifact.card import INPUT, OUTPUT
from service.domain.latents import FloatRows
from service.runtime.cuda_graphs import GRAPH_LOCK


class BoundBuffers:
    """The buffers of one bucket: one array on the host for padding, and two buffers on the device.

    A step reads one device buffer and writes the other, so the rows of the step before survive a step that fails.

    Args:
        session: an onnxruntime session.
        shape: (bucket, C, H, W).
        device: onnxruntime's name of the device type, and the device's index.
        graph_ids: source of CUDA graph ids; None without CUDA graphs.
    """

    def __init__(
        self, session: Any, shape: tuple[int, int, int, int], device: tuple[str, int], graph_ids: Iterator[int] | None
    ) -> None:
        self._session = session
        self._host = np.zeros(shape, dtype=np.float32)
        a, b = (ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *device) for _ in range(2))
        self._buffers = (a, b)
        self._bindings = (Binding(session, a, b, graph_ids), Binding(session, b, a, graph_ids))
        self._current = 0  # index of the buffer that has the rows

    def upload(self, rows: FloatRows) -> None:
        """Copy rows to the device, padded with zeros.

        Raises:
            ValueError: there are more rows than the bucket holds, or they have another shape.
        """
        if len(rows) > len(self._host) or rows.shape[1:] != self._host.shape[1:]:
            raise ValueError(f"{rows.shape} does not fit {self._host.shape}")
        self._host[: len(rows)] = rows
        self._host[len(rows) :] = 0.0
        self._current = 0
        self._buffers[0].update_inplace(self._host)
        self._bindings[0].binding.synchronize_inputs()

    def run_step(self) -> None:
        """Apply f to the rows on the device."""
        binding = self._bindings[self._current]
        # `run_with_iobinding` returns after the device has finished, so a failure is raised here, before the swap.
        with binding.graph_access():
            self._session.run_with_iobinding(binding.binding, binding.options)
        binding.captured = True
        self._current = 1 - self._current

    def download(self, out: FloatRows) -> None:
        """Copy the first ``len(out)`` rows to the host."""
        self._bindings[1 - self._current].binding.synchronize_outputs()
        out[...] = self._buffers[self._current].numpy()[: len(out)]


class Binding:
    """One direction: a session's input bound to one buffer and its output to the other, with a CUDA graph of its own.

    A graph replays the addresses and shapes it was captured with, and onnxruntime does not check them. So every pair of
    buffers and direction has its own graph id.
    """

    def __init__(self, session: Any, x: Any, y: Any, graph_ids: Iterator[int] | None) -> None:
        self.binding = session.io_binding()
        self.binding.bind_ortvalue_input(INPUT, x)
        self.binding.bind_ortvalue_output(OUTPUT, y)
        self.options = None
        self.captured = False  # the first run captures the graph; onnxruntime runs its warm-up runs within that call
        if graph_ids is not None:
            self.options = ort.RunOptions()
            self.options.add_run_config_entry("gpu_graph_id", str(next(graph_ids)))

    def graph_access(self) -> AbstractContextManager[None]:
        """The access to devices that the next run needs: exclusive for a capture, shared for a replay."""
        if self.options is None:
            return nullcontext()
        return GRAPH_LOCK.shared() if self.captured else GRAPH_LOCK.exclusive()
