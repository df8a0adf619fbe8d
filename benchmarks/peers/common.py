"""The model code that the peers share: onnxruntime with one thread on the same model file, and
Pillow.

A peer passes the bodies of a batch and gets the bodies of the responses. A body is a PNG, or one
row as little-endian float32; the response has the same format. It imports only numpy, onnxruntime
and Pillow, as it runs in the environments of the peers.
"""

import io
import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnxruntime
from PIL import Image

PNG: Final = b"\x89PNG"
# the shipped models' range is [−1, 1]
_LEVELS: Final = (-1.0 + np.arange(256) * 2.0 / 255).astype(np.float32)


def setting(name: str) -> int:
    """One of `PORT` (of 127.0.0.1), `PROCESSES` (copies of the model), `MAX_BATCH` (rows) and
    `WAIT_MS`.
    """
    return int(os.environ[f"PEER_{name}"])


class Function:
    """The model of the file `PEER_MODEL` as a function from bodies to bodies."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = os.environ["PEER_MODEL"]
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(model, options, providers=providers)
        self._input = self._session.get_inputs()[0].name
        self._shape = tuple(self._session.get_inputs()[0].shape[1:])
        self._session.run(None, {self._input: np.zeros((1, *self._shape), np.float32)})  # warm

    def __call__(self, bodies: Sequence[bytes]) -> list[bytes]:
        """One call of the model with all bodies, in order."""
        rows = self._session.run(
            None, {self._input: np.stack([self._row(body) for body in bodies])}
        )[0]
        pairs = zip(bodies, rows, strict=True)
        return [encoded(row) if body.startswith(PNG) else row.tobytes() for body, row in pairs]

    def _row(self, body: bytes) -> Any:
        if body.startswith(PNG):
            image = Image.open(io.BytesIO(body), formats=("PNG",))
            return _LEVELS.take(np.asarray(image)).reshape(self._shape)
        return np.frombuffer(body, "<f4").reshape(self._shape)


def encoded(row: Any) -> bytes:
    """1×H×W float32 → a grey PNG at Pillow's fastest compression."""
    levels = np.rint((row[0].astype(np.float64) + 1) * 255 / 2)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
