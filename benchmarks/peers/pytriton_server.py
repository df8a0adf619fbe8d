"""PyTriton: NVIDIA's Triton (C++) in front, Python callables behind it.

Settings: dynamic batching with and without a delay (`max_batch_size`, `max_queue_delay_microseconds`,
https://triton-inference-server.github.io/pytriton/latest/binding_configuration/); one callable for each copy of the
model (https://triton-inference-server.github.io/pytriton/latest/binding_models/#multi-instance-model-inference); as
many HTTP threads as CPUs (Triton's default is 8); gRPC and metrics off; no log of requests
(https://triton-inference-server.github.io/pytriton/latest/reference/triton_config/). Bodies are binary tensors: a PNG
is one BYTES element, a row FP32. Triton runs Python in a process of its own, which must find the library of this very
interpreter (https://triton-inference-server.github.io/pytriton/latest/installation/).
"""

import os
import sysconfig
from collections.abc import Callable
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers import common

Inference = Callable[..., dict[str, Any]]


def of_pictures() -> Inference:
    function = common.Function()

    @batch
    def infer(x: Any) -> dict[str, Any]:
        answers = np.empty((len(x), 1), np.object_)  # numpy's own strings of bytes lose zeros at the end
        answers[:, 0] = function(x[:, 0].tolist())
        return {"y": answers}

    return infer


def of_rows() -> Inference:
    function = common.Function()

    @batch
    def infer(x: Any) -> dict[str, Any]:
        return {"y": function.rows(x)}

    return infer


if __name__ == "__main__":
    os.environ["LD_LIBRARY_PATH"] = f"{sysconfig.get_config_var('LIBDIR')}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=common.port(),
        http_thread_count=os.cpu_count(),
        allow_grpc=False,
        allow_metrics=False,
        log_verbose=0,
    )
    batching = ModelConfig(
        max_batch_size=common.max_batch(),
        batcher=DynamicBatcher(max_queue_delay_microseconds=round(common.wait_s() * 1e6)),
    )
    kinds: dict[str, tuple[Callable[[], Inference], type, tuple[int, ...]]] = {
        "png": (of_pictures, bytes, (1,)),
        "raw": (of_rows, np.float32, (1, 28, 28)),
    }
    with Triton(config=config) as triton:
        for name, (make, dtype, shape) in kinds.items():
            triton.bind(
                model_name=name,
                infer_func=[make() for _ in range(common.processes())],
                inputs=[Tensor(name="x", dtype=dtype, shape=shape)],
                outputs=[Tensor(name="y", dtype=dtype, shape=shape)],
                config=batching,
                strict=False,
            )
        triton.serve()
