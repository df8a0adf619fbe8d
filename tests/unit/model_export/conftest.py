import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from model_export.data import drawings
from model_export.data.datasets import Dataset, open_source
from model_export.evaluation import classifier
from model_export.export import export
from model_export.export.artifact import publish
from tests.helpers.folders import contents
from tests.helpers.tiny_training import SIZE, TinyModel, tiny_model


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session", autouse=True)
def _fast() -> Iterator[None]:
    """One thread, because the workers of pytest-xdist share the cores; little to train and to
    measure.

    torch takes half a second to export a network, and gives the same bytes again for the same
    weights.
    """
    torch.set_num_threads(1)
    exported: dict[bytes, bytes] = {}

    def to_onnx(network: nn.Module, shape: tuple[int, int, int]) -> bytes:
        key = repr((network, shape)).encode() + b"".join(
            w.numpy().tobytes() for w in network.state_dict().values()
        )
        if key not in exported:
            exported[key] = original(network, shape)
        return exported[key]

    original = export.to_onnx
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "to_onnx", to_onnx)
        patch.setattr(classifier, "_STEPS", (150, 2000))
        patch.setattr(drawings, "_BANK", 100)
        yield


@pytest.fixture(scope="session")
def tiny(_fast: None, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """One tiny model for all tests of a run; the workers of pytest-xdist share it."""
    base = tmp_path_factory.getbasetemp()
    return tiny_model((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny_model")


@pytest.fixture(scope="session")
def data_file(tiny: TinyModel) -> Path:
    return tiny.data_file


@pytest.fixture(scope="session")
def data(tiny: TinyModel) -> Dataset:
    return open_source(str(tiny.data_file)).load(size=SIZE, channels=1)


@pytest.fixture(scope="session")
def tiny_run(tiny: TinyModel) -> Path:
    """The folder of a finished training; read-only."""
    return tiny.run


@pytest.fixture(scope="session")
def models(tiny: TinyModel) -> Path:
    """A model directory with `tiny/1`, not evaluated; read-only."""
    return tiny.models


@pytest.fixture(scope="session")
def cache(tiny: TinyModel) -> Path:
    """The folder of the trained classifiers."""
    return tiny.cache


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A copy of `tiny/1` that the test may change."""
    folder = tmp_path / "models" / "tiny" / "1"
    publish(folder, contents(models / "tiny" / "1"))
    return folder
