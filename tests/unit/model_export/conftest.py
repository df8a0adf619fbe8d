from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.cli import main
from model_export.evaluation import restoration
from model_export.export.artifact import publish
from model_export.export.export import export
from tests.helpers.tiny_training import contents, patterns, train_arguments


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quick_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classical methods are set by a few pictures: their quality is not what these tests look at."""
    monkeypatch.setattr(restoration, "_TUNING", 4)


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `.npz` of 240 + 80 labelled pictures."""
    path = tmp_path_factory.mktemp("data") / "patterns.npz"
    (x, y), (x_test, y_test) = patterns(240, 1), patterns(80, 2)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="session")
def tiny_run(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of the tiny preset; not to be written to."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(train_arguments(data_file, run)) == 0
    return run


@pytest.fixture(scope="session")
def models(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with `tiny/1`, not evaluated; not to be written to."""
    models = tmp_path_factory.mktemp("models")
    export(tiny_run, models, version=1, threads=1)
    return models


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A copy of `tiny/1`, to be written to."""
    folder = tmp_path / "models" / "tiny" / "1"
    publish(folder, contents(models / "tiny" / "1"))
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where classifiers are kept."""
    return tmp_path_factory.mktemp("cache")
