"""What every peer runs alike: onnxruntime on the one model file with one thread, and Pillow.

A peer hands over the bodies of a batch and gets the bodies of its answers. A body is a PNG, or the float32 of one row,
little-endian, as it is; the answer has the same form. Only numpy, onnxruntime and Pillow: this runs in the peers'
environments.
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
    """Where to listen, on 127.0.0.1."""
    return int(os.environ["PEER_PORT"])


def processes() -> int:
    """How many copies of the model to run, one thread each."""
    return int(os.environ["PEER_PROCESSES"])


def max_batch() -> int:
    """Rows that one pass may have."""
    return int(os.environ["PEER_MAX_BATCH"])


def wait_s() -> float:
    """For how long a batch that is not full may wait for more rows."""
    return float(os.environ["PEER_WAIT_MS"]) / 1000


class Function:
    """f, as bodies → bodies, of the model file at `PEER_MODEL`, or at this path."""

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
        """One pass over all bodies, in order."""
        rows = np.stack([self._row(body) for body in bodies])
        return [
            encoded(row) if body.startswith(PNG) else row.tobytes()
            for body, row in zip(bodies, self.rows(rows), strict=True)
        ]

    def base64(self, texts: Sequence[str | bytes]) -> list[str]:
        """The same for bodies that travel as base64."""
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
