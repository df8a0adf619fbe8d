"""The code path of CUDA on a machine without CUDA, and models whose end can be seen."""

from typing import Any

import numpy as np
import onnxruntime
import pytest

from service.domain.errors import ModelFailure
from service.domain.model import DeviceOutOfMemory
from service.runtime import onnx_model
from service.runtime.onnx_model import OnnxModel


def cuda_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make models run the code path of CUDA, with sessions on the CPU."""

    def start(data: bytes, *_: Any) -> Any:
        return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnx_model, "cuda_session", start)


def is_closed(model: OnnxModel) -> bool:
    try:
        OnnxModel.run(model, np.zeros((1, *model.shape), np.float32))
    except ModelFailure as exc:
        return "closed" in exc.reason
    except DeviceOutOfMemory:
        return False
    return False
