"""Several GPUs behind one queue, as callers and operators see them. The GPUs are stand-ins on the
CPU.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from service.domain.latents import FloatRows
from service.domain.model import DeviceLost
from service.runtime.onnx_model import OnnxModel
from service.runtime.session import CudaOptions
from tests.contract.data import GREY
from tests.contract.harness import Service, problem, serving, settings
from tests.helpers.device_fakes import cuda_on_the_cpu
from tests.helpers.onnx_models import write_model


class Gpu(OnnxModel):
    """A model on a GPU that fails every call once it is among the `lost`."""

    lost: ClassVar[set[int]] = set()
    used: ClassVar[set[int]] = set()

    def __init__(self, data: bytes, *, cuda: CudaOptions, **options: Any) -> None:
        super().__init__(data, cuda=cuda, **options)
        self._number = cuda.device_id

    def run(self, rows: FloatRows) -> FloatRows:
        if self.device == "cuda" and self._number in self.lost:
            raise DeviceLost("CUDA failure 700: an illegal memory access was encountered")
        self.used.add(self._number)
        return super().run(rows)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fewer than in other tests, because each has to start on every GPU."""
    directory = tmp_path_factory.mktemp("models")
    write_model(directory, "grey", "2", GREY, scale=1.5)
    write_model(directory, "grey", "10", GREY)
    return directory


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Gpu]]:
    cuda_on_the_cpu(monkeypatch)
    monkeypatch.setattr("service.app.OnnxModel", Gpu)
    for seen in (Gpu.lost, Gpu.used):
        seen.clear()
    yield Gpu
    Gpu.lost.clear()


def generated(service: Service, seed: int, **options: Any) -> bytes:
    return service.rows("/generate", seed=seed, n=4, **options).tobytes()


def test_callers_see_neither_how_many_there_are_nor_that_one_is_lost(
    service: Service, few: Path, gpus: type[Gpu]
) -> None:
    expected = [generated(service, seed, steps=3) for seed in range(16)]
    with (
        serving(settings(few, device="cuda", gpu_count=2)) as several,
        ThreadPoolExecutor(8) as pool,
    ):

        def found() -> list[bytes]:
            return list(pool.map(lambda seed: generated(several, seed, steps=3), range(16)))

        assert gpus.used == {0, 1}  # each has been held to the golden rows
        assert found() == expected
        gpus.lost.add(1)
        while several.metric("ign_devices_lost_total", model="grey/10") == 0:
            assert found() == expected
        assert several.get("/readyz").status_code == 200
        assert [record.levelname for record in several.errors] == ["CRITICAL"]
        several.errors.clear()
        assert several.metric("ign_devices_lost_total", model="grey/2") == 0  # nobody has asked it


def test_without_any_it_is_not_ready(
    few: Path, gpus: type[Gpu], caplog: pytest.LogCaptureFixture
) -> None:
    with serving(settings(few, device="cuda", gpu_count=2)) as service:
        gpus.lost |= {0, 1}
        response = service.post("/generate", {}, headers={"X-Request-ID": "the-lost-one"})
        assert "CUDA" not in problem(response, 500, "model_failure").detail
        detail = problem(service.get("/readyz"), 503, "not_ready").detail
        assert "grey/10" in detail
        assert "CUDA failure 700: an illegal memory access was encountered" in detail
        problem(service.post("/generate", {}), 503, "not_ready")
        service.errors.clear()
    lines = [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"]
    assert all("CUDA failure 700" in line for line in lines)
    assert "request the-lost-one failed" in caplog.text


def test_auto_serves_on_the_cpu_if_the_first_run_fails_on_cuda(
    few: Path, gpus: type[Gpu], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service")
    gpus.lost.add(0)  # its sessions start, and the first run fails
    with serving(settings(few, device="auto")) as service:
        for state in service.get("/readyz").json()["models"].values():
            assert state["device"] == "cpu"
            assert (
                "CUDA failure 700: an illegal memory access was encountered"
                in state["fallback_reason"]
            )
        generated(service, 1)
    assert "serving grey/10 on cpu" in caplog.text
