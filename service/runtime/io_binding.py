"""Buffers bound to a session (onnxruntime IO binding)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import onnxruntime as ort

from service.artifact.card import INPUT, OUTPUT
from service.domain.latents import FloatRows
from service.runtime.cuda_graphs import CAPTURES


class BoundBuffers:
    """One bucket: a host array to pad in, two buffers on the device, and the bindings of the two directions."""

    def __init__(
        self, session: Any, shape: tuple[int, int, int, int], device: tuple[str, int], numbers: Iterator[int] | None
    ) -> None:
        self._session = session
        self._host = np.zeros(shape, dtype=np.float32)
        a, b = (ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *device) for _ in range(2))
        self._buffers = (a, b)
        self._ways = (Binding(session, a, b, numbers), Binding(session, b, a, numbers))
        self._now = 0  # which buffer has the rows

    def load(self, rows: FloatRows) -> None:
        if len(rows) > len(self._host) or rows.shape[1:] != self._host.shape[1:]:
            raise ValueError(f"{rows.shape} does not fit {self._host.shape}")
        self._host[: len(rows)] = rows
        self._host[len(rows) :] = 0.0
        self._now = 0
        self._buffers[0].update_inplace(self._host)
        self._ways[0].binding.synchronize_inputs()

    def step(self) -> None:
        way = self._ways[self._now]
        # Returns once the device is done: that is when a failure is told, and the two buffers change places.
        with way.turn():
            self._session.run_with_iobinding(way.binding, way.options)
        way.captured = True
        self._now = 1 - self._now

    def fetch(self, out: FloatRows) -> None:
        self._ways[1 - self._now].binding.synchronize_outputs()
        out[...] = self._buffers[self._now].numpy()[: len(out)]


class Binding:
    """From one buffer into the other: the binding, and the number of the graph that is captured of it."""

    def __init__(self, session: Any, x: Any, y: Any, numbers: Iterator[int] | None) -> None:
        self.binding = session.io_binding()
        self.binding.bind_ortvalue_input(INPUT, x)
        self.binding.bind_ortvalue_output(OUTPUT, y)
        self.options = None
        self.captured = False  # the first run does it, together with the ones that have to precede it
        if numbers is not None:
            self.options = ort.RunOptions()
            self.options.add_run_config_entry("gpu_graph_id", str(next(numbers)))

    def turn(self) -> AbstractContextManager[None]:
        """What the next run of it needs."""
        if self.options is None:
            return nullcontext()
        return CAPTURES.together() if self.captured else CAPTURES.alone()
