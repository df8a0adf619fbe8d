"""The model code that every peer shares: onnxruntime with one thread on the same model file, and Pillow.

A peer passes the bodies of a batch and gets the bodies of the answers. A body is a PNG, or one row as little-endian
float32; the answer has the same format. It imports only numpy, onnxruntime and Pillow, as it runs in the environments
of the peers.
"""

import base64
import io
import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnxruntime
from PIL import Image

PNG: Final = b"\x89PNG"
_LEVELS: Final = (-1.0 + np.arange(256) * 2.0 / 255).astype(np.float32)  # the shipped models' range is [−1, 1]


def port() -> int:
    """The port to listen on, on 127.0.0.1."""
    return int(os.environ["PEER_PORT"])


def processes() -> int:
    """The number of copies of the model, one thread each."""
    return int(os.environ["PEER_PROCESSES"])


def max_batch() -> int:
    """The largest batch, in rows."""
    return int(os.environ["PEER_MAX_BATCH"])


def wait_s() -> float:
    """The longest time that a batch waits for more rows, in seconds."""
    return float(os.environ["PEER_WAIT_MS"]) / 1000


class Function:
    """The model as a function from bodies to bodies; its file is ``model``, or `PEER_MODEL`."""

    def __init__(self, model: str | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            model or os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self.shape = tuple(self._session.get_inputs()[0].shape[1:])
        self.rows(np.zeros((1, *self.shape), np.float32))  # warm

    def __call__(self, bodies: Sequence[bytes]) -> list[bytes]:
        """One call of the model with all bodies, in order."""
        rows = np.stack([self._row(body) for body in bodies])
        return [
            encoded(row) if body.startswith(PNG) else row.tobytes()
            for body, row in zip(bodies, self.rows(rows), strict=True)
        ]

    def base64(self, texts: Sequence[str | bytes]) -> list[str]:
        """The same for bodies in base64."""
        answers = self([base64.b64decode(text) for text in texts])
        return [base64.b64encode(answer).decode("ascii") for answer in answers]

    def rows(self, rows: Any) -> Any:
        """(N, C, H, W) float32 → the same."""
        return self._session.run(None, {self._input: rows})[0]

    def _row(self, body: bytes) -> Any:
        if body.startswith(PNG):
            return decoded(body).reshape(self.shape)
        return np.frombuffer(body, "<f4").reshape(self.shape)


def decoded(body: bytes) -> Any:
    """A grey PNG → H×W float32."""
    return _LEVELS.take(np.asarray(Image.open(io.BytesIO(body), formats=("PNG",))))


def encoded(row: Any) -> bytes:
    """1×H×W float32 → a grey PNG at Pillow's fastest compression."""
    levels = np.rint((row[0].astype(np.float64) + 1) * 255 / 2)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
