"""Ray Serve: HAProxy in front, replicas as Ray actors behind it.

Settings: HAProxy and the throughput optimisations, both off by default
(https://docs.ray.io/en/latest/serve/advanced-guides/performance.html); `serve.batch` in every replica
(https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html), whose work is done in a thread so that the
replica goes on reading; one replica for each copy of the model; `max_ongoing_requests` far beyond its default of 5;
no access log, no dashboard.
"""

import asyncio
import signal

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers import common


class Function:
    def __init__(self) -> None:
        self.function = common.Function()

    @serve.batch(max_batch_size=common.max_batch(), batch_wait_timeout_s=common.wait_s())
    async def batched(self, bodies: list[bytes]) -> list[bytes]:
        return await asyncio.to_thread(self.function, bodies)

    async def __call__(self, request: Request) -> Response:
        answer = await self.batched(await request.body())
        return Response(answer, media_type="application/octet-stream")


if __name__ == "__main__":
    # CPUs in Ray's sense are for its bookkeeping: one for each replica, and one for its own actors.
    ray.init(num_cpus=common.processes() + 1, include_dashboard=False, object_store_memory=100 * 2**20)
    serve.start(http_options={"host": "127.0.0.1", "port": common.port()})
    deployed = serve.deployment(
        num_replicas=common.processes(),
        max_ongoing_requests=1024,
        ray_actor_options={"num_cpus": 1},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(Function)
    serve.run(deployed.bind(), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
