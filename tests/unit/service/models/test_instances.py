"""How many instances of a model there are, and with how many threads."""

from typing import Any

import pytest

from service.domain.errors import StartupError
from service.models import instances
from service.models.instances import InstanceFactory
from service.runtime.onnx_model import OnnxModel
from service.settings import Settings
from tests.helpers.device_fakes import is_closed
from tests.helpers.onnx_models import hungry, model_bytes

DATA = model_bytes()


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


@pytest.mark.parametrize(
    ("granted", "options", "fast", "slow"),
    [
        (1, {}, [1], [1]),
        (2, {}, [1, 1], [2]),
        (3, {}, [1, 1], [3]),
        (9, {}, [1] * 8, [9]),
        (20, {}, [2] * 8, [20]),
        (64, {"threads": 8}, [1] * 7, [8]),
        (6, {"cpu_instances": 2}, [3, 3], [3, 3]),
        (6, {"cpu_instances": 4}, [1] * 4, [1] * 4),
        (2, {"cpu_instances": 3}, [1] * 3, [1] * 3),
    ],
)
def test_a_fast_model_runs_in_several_instances_and_a_slow_one_has_all_threads(
    granted: int, options: dict[str, Any], fast: list[int], slow: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "available_cpus", lambda: granted)
    for fast_row_s, threads in ((60.0, fast), (0.0, slow)):
        monkeypatch.setattr(instances, "_FAST_ROW_S", fast_row_s)
        factory = RecordingFactory()
        models = InstanceFactory(factory, Settings(device="cpu", **options))(DATA)
        assert models == factory.running()
        assert factory.threads[-len(models) :] == threads


def test_when_one_cannot_be_made_the_others_are_closed() -> None:
    factory = RecordingFactory(most=2)
    with pytest.raises(StartupError, match="no more"):
        InstanceFactory(factory, Settings(device="cpu", cpu_instances=3))(DATA)
    assert (len(factory.opened), factory.running()) == (2, [])


def test_a_model_that_fails_is_left_to_verification() -> None:
    # It is not taken for a slow one, which would be made again with all threads.
    assert len(InstanceFactory(RecordingFactory(), Settings(device="cpu", threads=2))(hungry(2**45))) == 2
