"""How many instances of a model there are, and with how many threads."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.domain.errors import ModelFailure, StartupError
from service.models import instances
from service.models.instances import InstanceFactory
from service.runtime.onnx_model import OnnxModel
from service.settings import Settings
from tests.helpers.onnx_models import hungry, model_bytes, sample_rows

DATA = model_bytes()


def is_closed(model: OnnxModel) -> bool:
    try:
        model.run(sample_rows(1))
    except ModelFailure:
        return True
    return False


class RecordingFactory:
    """Makes real models on the CPU and records their threads."""

    def __init__(self, most: int = 64) -> None:
        self.threads: list[int] = []
        self.opened: list[OnnxModel] = []
        self.most = most

    def __call__(self, data: bytes, *, threads: int, **options: Any) -> OnnxModel:
        if len(self.opened) == self.most:
            raise StartupError("no more")
        self.threads.append(threads)
        self.opened.append(OnnxModel(data, threads=threads, **options))
        return self.opened[-1]

    def running(self) -> list[OnnxModel]:
        return [model for model in self.opened if not is_closed(model)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Returns the threads of each instance that is left running."""

    def open_all(granted: int, *, slow: bool = False, **options: Any) -> list[int]:
        monkeypatch.setattr(instances, "available_cpus", lambda: granted)
        monkeypatch.setattr(instances, "_FAST_ROW_S", 0.0 if slow else 60.0)
        factory = RecordingFactory()
        models = InstanceFactory(factory, Settings(device="cpu", **options))(DATA)
        assert models == factory.running()
        x = sample_rows(3)
        for model in models[1:]:
            np.testing.assert_array_equal(model.run(x), models[0].run(x))
        for model in models:
            model.close()
        return factory.threads[-len(models) :]

    return open_all


@pytest.mark.parametrize(
    ("granted", "threads"), [(1, [1]), (2, [1, 1]), (3, [1, 1]), (8, [1] * 7), (9, [1] * 8), (20, [2] * 8)]
)
def test_a_fast_model_runs_in_several_instances(
    granted: int, threads: list[int], opened: Callable[..., list[int]]
) -> None:
    assert opened(granted) == threads
    assert opened(64, threads=granted) == threads


@pytest.mark.parametrize("granted", [1, 2, 20])
def test_a_slow_model_has_all_threads(granted: int, opened: Callable[..., list[int]]) -> None:
    assert opened(granted, slow=True) == [granted]


@pytest.mark.parametrize(
    ("sessions", "granted", "threads"), [(1, 6, [6]), (2, 6, [3, 3]), (4, 6, [1] * 4), (3, 2, [1] * 3)]
)
def test_a_configured_number_of_instances(
    sessions: int, granted: int, threads: list[int], opened: Callable[..., list[int]]
) -> None:
    for slow in (False, True):
        assert opened(granted, slow=slow, cpu_instances=sessions) == threads


def test_when_one_cannot_be_made_the_others_are_closed() -> None:
    factory = RecordingFactory(most=2)
    with pytest.raises(StartupError, match="no more"):
        InstanceFactory(factory, Settings(device="cpu", cpu_instances=3))(DATA)
    assert (len(factory.opened), factory.running()) == (2, [])


def test_a_model_that_fails_is_left_to_verification() -> None:
    # It is not taken for a slow one, which would be made again with all threads.
    assert len(InstanceFactory(RecordingFactory(), Settings(device="cpu", threads=2))(hungry(2**45))) == 2
