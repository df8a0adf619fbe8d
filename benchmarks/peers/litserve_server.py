"""LitServe: FastAPI in front, worker processes behind it, batches formed by the worker.

Settings: `max_batch_size` and `batch_timeout` (https://lightning.ai/docs/litserve/features/batching), never 0, with
which an idle worker spins; one worker for each copy of the model and as many API servers (`workers_per_device`,
`num_api_servers`), `fast_queue` (ZeroMQ) for the answers, no log line for each request
(https://lightning.ai/docs/litserve/api-reference/litserver). Bodies are bytes, not JSON: the annotations of
`decode_request` and `encode_response` are those of the FastAPI endpoint. All the work is done in `predict`, once per
batch.
"""

from typing import Annotated

import litserve
from fastapi import Body, Response

from benchmarks.peers import common

Bytes = Annotated[bytes, Body(media_type="application/octet-stream")]


class Function(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.function = common.Function()

    def decode_request(self, request: Bytes) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: list[bytes]) -> list[bytes]:
        return self.function(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    api = Function(max_batch_size=common.max_batch(), batch_timeout=common.wait_s())
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=common.processes(), fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=common.port(),
        num_api_servers=common.processes(),
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
