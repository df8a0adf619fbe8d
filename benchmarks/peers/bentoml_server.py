"""BentoML: Starlette in worker processes, each with a dispatcher that forms its own batches.

Settings: a batchable API, whose dispatcher learns for itself how long to wait
(https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html); `workers`, one for each copy of the model, and
one thread for each (https://docs.bentoml.com/en/latest/build-with-bentoml/parallelize-requests.html); access log and
metrics off (https://docs.bentoml.com/en/latest/reference/bentoml/configurations.html). Batchable APIs take and give
lists, which over HTTP are JSON, so a body is base64 within a list of one; a second service in front that takes raw
bodies would cost a second HTTP call for each.
"""

import os
import sys

import bentoml

from benchmarks.peers import common


@bentoml.service(
    workers=common.processes(),
    threads=1,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Function:
    def __init__(self) -> None:
        self.function = common.Function()

    @bentoml.api(batchable=True, max_batch_size=common.max_batch(), route="/predict")
    def predict(self, bodies: list[str]) -> list[str]:
        return self.function.base64(bodies)


if __name__ == "__main__":
    service = "benchmarks.peers.bentoml_server:Function"
    where = ["--host", "127.0.0.1", "--port", str(common.port())]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", service, *where])
