"""Tests that need a GPU. Without one all are skipped, and pytest prints the reason."""

import pytest

from service.domain.errors import StartupError
from service.environment import prepare_process
from service.runtime.onnx_model import OnnxModel
from tests.helpers.onnx_models import model_bytes

prepare_process()  # before anything loads NVIDIA's libraries


@pytest.fixture(scope="session", autouse=True)
def _device() -> None:
    try:
        OnnxModel(model_bytes(), device="cuda").close()
    except StartupError as exc:
        pytest.skip(f"no GPU: {exc.detail}")
