"""The server of `benchmarks.bench_peers` beside this service: mosec, a Rust front with worker
processes behind it, and batches formed in front.

A body is a PNG, or one row as little-endian float32; the response has the same format. This imports
only numpy, onnxruntime, Pillow and mosec, as it runs in an environment of its own.

Settings: one stage that decodes, computes and encodes, as a second stage would cost a second copy
of every body between processes; `num` worker processes, one for each copy of the model, with one
thread each; `max_batch_size` and `max_wait_time`
(https://mosecorg.github.io/mosec/reference/interface.html); bodies as bytes instead of JSON, by
overriding `deserialize` and `serialize`; a queue beyond the number of connections, and no log line
for each request (https://mosecorg.github.io/mosec/reference/arguments.html).
"""

import io
import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnxruntime
from mosec import Server, Worker
from PIL import Image

PNG: Final = b"\x89PNG"
# the shipped models' range is [−1, 1]
_LEVELS: Final = (-1.0 + np.arange(256) * 2.0 / 255).astype(np.float32)


class Function(Worker):
    """The model of the file `PEER_MODEL` as a function from bodies to bodies."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = os.environ["PEER_MODEL"]
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(model, options, providers=providers)
        self._input = self._session.get_inputs()[0].name
        self._shape = tuple(self._session.get_inputs()[0].shape[1:])
        self._session.run(None, {self._input: np.zeros((1, *self._shape), np.float32)})  # warm

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: Sequence[bytes]) -> list[bytes]:
        """One call of the model with all bodies, in order."""
        batch = np.stack([self._row(body) for body in data])
        rows = self._session.run(None, {self._input: batch})[0]
        pairs = zip(data, rows, strict=True)
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


if __name__ == "__main__":
    os.environ |= {
        "MOSEC_ADDRESS": "127.0.0.1",
        "MOSEC_PORT": os.environ["PEER_PORT"],
        "MOSEC_CAPACITY": "4096",
        "MOSEC_TIMEOUT": "30000",
        "MOSEC_LOG_LEVEL": "warning",
    }
    server = Server()
    server.append_worker(
        Function,
        num=int(os.environ["PEER_COPIES"]),
        max_batch_size=int(os.environ["PEER_MAX_BATCH"]),
        max_wait_time=int(os.environ["PEER_WAIT_MS"]),
        route="/predict",
    )
    server.run()
