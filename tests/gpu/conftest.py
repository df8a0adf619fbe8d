"""Tests that need a GPU. Without one all are skipped, and pytest prints the reason."""

import functools

import pytest

from service.domain.errors import StartupError
from service.environment import prepare_process
from service.runtime.onnx_model import OnnxModel
from tests.helpers.onnx_models import model_bytes

prepare_process()  # before anything loads NVIDIA's libraries


@functools.cache
def why_not() -> str | None:
    """Why CUDA does not work, or None."""
    try:
        OnnxModel(model_bytes(), device="cuda").close()
    except StartupError as exc:
        return exc.detail
    return None


@pytest.fixture(scope="session", autouse=True)
def _device() -> None:
    if reason := why_not():
        pytest.skip(f"no GPU: {reason}")
