"""MLServer: FastAPI and the Open Inference Protocol in front, a pool of worker processes behind it.

Settings: adaptive batching, which is off by default (`max_batch_size`, `max_batch_time`,
https://docs.seldon.ai/mlserver/user-guide/adaptive-batching); one worker of the pool for each copy of the model
(`parallel_workers`, https://docs.seldon.ai/mlserver/user-guide/parallel-inference); no debug log, gzip or metrics
(https://docs.seldon.ai/mlserver/reference/settings). It has no binary tensors, so a body is one BYTES element in
base64, which is less than half of what its floats would be as JSON numbers.
"""

import asyncio

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.peers import common


class Function(MLModel):
    async def load(self) -> bool:
        self.function = common.Function()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = self.function.base64(payload.inputs[0].data.root)
        output = ResponseOutput(name="y", shape=[len(texts), 1], datatype="BYTES", data=texts)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def serve() -> None:
    settings = Settings(
        host="127.0.0.1",
        http_port=common.port(),
        grpc_port=0,
        metrics_endpoint=None,
        debug=False,
        gzip_enabled=False,
        parallel_workers=common.processes(),
    )
    model = ModelSettings(
        name="f",
        implementation="benchmarks.peers.mlserver_server.Function",
        max_batch_size=common.max_batch(),
        max_batch_time=common.wait_s(),
        parameters=ModelParameters(version="1"),
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(serve())
