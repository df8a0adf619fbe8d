"""The code path of CUDA on a machine without CUDA."""

from collections.abc import Sequence
from typing import Any

import onnxruntime
import pytest

from service.runtime import onnx_model
from service.runtime.runners import PaddedRunner
from tests.helpers.onnx_models import ImageShape


def cuda_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make models run the code path of CUDA, with sessions and buffers on the CPU."""

    def start(data: bytes, *_: Any) -> Any:
        return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def runner(session: Any, shape: ImageShape, buckets: Sequence[int], device: str, **options: Any) -> PaddedRunner:
        assert device == "cuda"
        return PaddedRunner(session, shape, buckets, "cpu", **(options | {"device_id": 0}))

    monkeypatch.setattr(onnx_model, "cuda_session", start)
    monkeypatch.setattr(onnx_model, "PaddedRunner", runner)
