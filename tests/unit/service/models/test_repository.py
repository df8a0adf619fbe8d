import hashlib
import logging
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service.domain.errors import ModelFailure, StartupError
from service.domain.latents import FloatRows
from service.domain.model import DeviceLost, DeviceOutOfMemory
from service.models import repository as module
from service.models.repository import Repository
from service.runtime.onnx_model import OnnxModel
from tests.helpers.device_fakes import cuda_on_the_cpu
from tests.helpers.onnx_models import hungry, make_card, model_bytes, reference, sample_rows, write_golden, write_model


class Opener:
    """Opens real models on the CPU and remembers them."""

    def __init__(self) -> None:
        self.opened: list[OnnxModel] = []

    def __call__(self, data: bytes) -> list[OnnxModel]:
        model = OnnxModel(data, device="cpu")
        self.opened.append(model)
        return [model]

    def closed(self) -> bool:
        """Whether none of them runs any more."""
        return all(model._runner is None for model in self.opened)


def repository(directory: Path, default: str = "toy", **options: Any) -> Repository:
    return Repository(directory, lambda data: [OnnxModel(data, device="cpu")], default=default, **options)


def refusal(directory: Path, default: str = "toy", **options: Any) -> str:
    opener = Opener()
    with pytest.raises(StartupError) as caught:
        Repository(directory, opener, default=default, **options).load_all()
    assert "\n" not in caught.value.detail
    assert opener.closed()
    return caught.value.detail


def test_loads_every_version_of_every_model(tmp_path: Path) -> None:
    for name, version in (("toy", "10"), ("toy", "9"), ("a.b-c_d", "1")):
        write_model(tmp_path, name, version, shape=(3, 8, 8))
    models = repository(tmp_path).load_all()
    assert list(models) == ["a.b-c_d/1", "toy/9", "toy/10"]
    for ref, loaded in models.items():
        data = (tmp_path / ref / "model.onnx").read_bytes()
        assert loaded.ref == ref == loaded.card.ref
        assert loaded.digest == hashlib.sha256(data).hexdigest()
        assert (loaded.device, loaded.provider, loaded.fallback_reason) == ("cpu", "CPUExecutionProvider", None)
        assert (loaded.golden.passed, loaded.golden.reproducible) == (True, "exact")
        rows = sample_rows(2, (3, 8, 8), seed=5)
        np.testing.assert_allclose(loaded.instances[0].run(rows), reference(rows), atol=1e-6)
        assert loaded.noise.rows(1, 0, 2).shape == (2, 3, 8, 8)


def test_one_more_version_may_be_loaded_later(tmp_path: Path) -> None:
    write_model(tmp_path)
    models = repository(tmp_path)
    models.load_all()
    write_model(tmp_path, version="2", scale=0.5)
    assert models.load("toy/2").ref == "toy/2"


# What changes later


def test_versions_of_one_model(tmp_path: Path) -> None:
    for version in ("10", "9"):
        write_model(tmp_path, "toy", version)
    write_model(tmp_path, "toyota")
    models = repository(tmp_path)
    assert models.find("toy") == ["toy/9", "toy/10"]
    for name in ("to", "TOY", "", ".", "..", "../toy", "toy/9", "toy\0"):
        assert models.find(name) == []


def test_versions_outside_of_the_directory_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "outside")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "toy").symlink_to(tmp_path / "outside" / "toy")
    with pytest.raises(StartupError, match="toy: leads out of the model directory"):
        repository(tmp_path / "models").find("toy")


def test_replaced_and_rewritten_files_are_others(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    models = repository(tmp_path)
    seen = [models.files("toy/1")]
    assert models.files("toy/1") == seen[0] == models.load("toy/1").files
    data = (folder / "model.onnx").read_bytes()
    (folder / "other").write_bytes(data)
    (folder / "other").rename(folder / "model.onnx")
    seen.append(models.files("toy/1"))
    with (folder / "golden.npz").open("ab") as golden:
        golden.write(b"more")
    seen.append(models.files("toy/1"))
    (folder / "golden.npz").unlink()
    seen.append(models.files("toy/1"))
    shutil.rmtree(folder)
    assert models.files("toy/1") == ()
    assert len(set(seen)) == 4


# What is passed over


def test_other_entries_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_model(tmp_path)
    (tmp_path / "README.md").write_text("models")
    (tmp_path / ".git").mkdir()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "toy" / "latest").mkdir()
    (tmp_path / "toy" / "01").mkdir()
    with caplog.at_level(logging.WARNING, logger=module.__name__):
        models = repository(tmp_path)
        assert list(models.load_all()) == models.find() == models.find("toy") == ["toy/1"]
    assert len(caplog.records) == 3  # each said once
    assert {record.args for record in caplog.records} == {("lost+found",), ("latest",), ("01",)}


def test_a_link_within_the_directory_is_followed(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    store = tmp_path / "..data"  # as Kubernetes lays volumes out
    store.mkdir()
    (folder / "model.onnx").rename(store / "model.onnx")
    (folder / "model.onnx").symlink_to(store / "model.onnx")
    assert list(repository(tmp_path).load_all()) == ["toy/1"]


def test_the_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    write_model(tmp_path / "real")
    (tmp_path / "models").symlink_to(tmp_path / "real")
    assert list(repository(tmp_path / "models").load_all()) == ["toy/1"]


# What refuses to start


def test_a_missing_or_empty_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").startswith(f"IGN_MODEL_DIR={tmp_path}/none: no such directory")
    assert "holds no model" in refusal(tmp_path)
    (tmp_path / "toy").mkdir()
    assert "holds no model" in refusal(tmp_path)


def test_a_default_that_is_not_there_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    write_model(tmp_path)
    opener = Opener()
    for default in ("mnist", "toy/2", "to"):
        with pytest.raises(StartupError, match=f"IGN_DEFAULT_MODEL={default}: not there; there is toy/1"):
            Repository(tmp_path, opener, default=default).load_all()
    assert opener.opened == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def other_card(path: Path) -> None:
    path.write_bytes(model_bytes(make_card("other")))


def other_weights(path: Path) -> None:
    path.write_bytes(model_bytes(make_card(), scale=0.5))


def later_onnx(path: Path) -> None:
    model = onnx.load(path)
    model.opset_import[0].version = 999
    path.write_bytes(model.SerializeToString())


def outside_weights(path: Path) -> None:
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (path.parent / "weights.bin").is_file()  # within the version's folder too


def other_domain(path: Path) -> None:
    model = onnx.load(path)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    path.write_bytes(model.SerializeToString())


def other_digest(path: Path) -> None:
    x = sample_rows(2)
    write_golden(path.parent, x, reference(x), digest="0" * 64)


def other_rows(path: Path) -> None:
    x = sample_rows(2)
    write_golden(path.parent, x, reference(x) + np.float32(2e-4))


def other_shape(path: Path) -> None:
    x = sample_rows(2, (3, 8, 8))
    write_golden(path.parent, x, reference(x))


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("model.onnx", Path.unlink, "toy/1/model.onnx: no such file"),
        ("model.onnx", truncate, "toy/1/model.onnx: not a model onnxruntime can load"),
        ("model.onnx", later_onnx, "toy/1/model.onnx: needs ONNX opset 999, and onnxruntime"),
        ("model.onnx", other_card, "toy/1/model.onnx: its card says other/1"),
        ("model.onnx", other_weights, "toy/1/golden.npz: belongs to another model.onnx"),
        ("golden.npz", Path.unlink, "toy/1/golden.npz: no such file"),
        ("golden.npz", truncate, "toy/1/golden.npz: damaged"),
        ("golden.npz", other_digest, "toy/1/golden.npz: belongs to another model.onnx, '000000000000'"),
        ("golden.npz", other_rows, "toy/1/golden.npz: CPUExecutionProvider differs by 0.0002, allowed are 0.0001"),
        ("golden.npz", other_shape, "toy/1/golden.npz: x and y must both be"),
    ],
)
def test_damage_is_refused_by_file(tmp_path: Path, file: str, damage: Callable[[Path], object], says: str) -> None:
    write_model(tmp_path, "a")  # sound, and loaded first: it has to be closed as well
    damage(write_model(tmp_path) / file)
    line = refusal(tmp_path, default="a")
    assert line.startswith(says)
    assert str(tmp_path) not in line


def test_a_card_tolerance_is_obeyed(tmp_path: Path) -> None:
    folder = write_model(tmp_path, tolerance={"fp32": 1e-3})
    other_rows(folder / "golden.npz")
    assert repository(tmp_path).load_all()["toy/1"].golden.difference == pytest.approx(2e-4, rel=0.01)


@pytest.mark.parametrize("what", ["toy", "toy/1", "toy/1/model.onnx", "toy/1/golden.npz"])
def test_links_out_of_the_directory_are_refused(tmp_path: Path, what: str) -> None:
    inside, outside = tmp_path / "models", tmp_path / "outside"
    write_model(inside)
    outside.mkdir()
    shutil.move(inside / what, outside / "moved")
    (inside / what).symlink_to(outside / "moved")
    assert refusal(inside) == f"{what}: leads out of the model directory"


def test_a_file_that_is_no_file_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")  # opening it would wait for ever
    assert refusal(tmp_path) == "toy/1/model.onnx: no such file"


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path)
    monkeypatch.setattr(module, "MAX_MODEL_BYTES", 1000)
    assert refusal(tmp_path) == "toy/1/model.onnx: larger than 1000 bytes"


def test_reading_a_file_takes_no_more_memory_than_the_file(tmp_path: Path) -> None:
    write_model(tmp_path)
    models = repository(tmp_path)
    tracemalloc.start()
    try:
        models.load("toy/1")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**25


@pytest.mark.parametrize("reported", [10, 10**6])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: int
) -> None:
    write_model(tmp_path)
    result = os.stat_result((0o100644, 0, 0, 1, 0, 0, reported, 0, 0, 0))
    monkeypatch.setattr(os, "fstat", lambda _: result)
    assert refusal(tmp_path) == "toy/1/model.onnx: changed while it was read"


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (outside_weights, "toy/1/model.onnx: has weights outside of the file"),
        (other_domain, "toy/1/model.onnx: holds operators of the domain 'com.microsoft'"),
    ],
)
def test_a_file_that_is_not_self_contained_is_refused(tmp_path: Path, file: Callable[[Path], None], says: str) -> None:
    file(write_model(tmp_path) / "model.onnx")
    assert refusal(tmp_path).startswith(says)


def test_a_model_that_does_not_run_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "model.onnx").write_bytes(hungry(2**45))
    x = sample_rows(2)
    write_golden(folder, x, x)
    line = refusal(tmp_path)
    assert line.startswith("toy/1/model.onnx: does not run on CPUExecutionProvider: 1 rows do not fit")


# CUDA that fails when a model is warmed up or verified


class BrokenGpu(OnnxModel):
    """A model on a stand-in for CUDA: it raises `error`, or gives other rows than the golden ones if that is None."""

    error: Exception | None = None

    def run(self, rows: FloatRows, out: FloatRows | None = None) -> FloatRows:
        if self.error is not None:
            raise self.error
        return super().run(rows, out) + np.float32(1)


CUDA_FAILURES = [
    (ModelFailure("the model failed", reason="CUDNN failure 3000: NOT_SUPPORTED"), "CUDNN failure 3000: NOT_SUPPORTED"),
    (DeviceLost("CUDA failure 209: no kernel image is available"), "CUDA failure 209: no kernel image is available"),
    (DeviceOutOfMemory("1 rows do not fit"), "1 rows do not fit"),
    (StartupError("CUDA cannot be used: no memory"), "CUDA cannot be used: no memory"),
    (None, "differs by 1"),
]


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch) -> list[BrokenGpu]:
    """The models that were opened on CUDA."""
    cuda_on_the_cpu(monkeypatch)
    return []


def on_cuda(opened: list[BrokenGpu], error: Exception | None) -> Callable[[bytes], list[BrokenGpu]]:
    def open_models(data: bytes) -> list[BrokenGpu]:
        model = BrokenGpu(data, device="cuda")
        model.error = error
        opened.append(model)
        return [model]

    return open_models


@pytest.mark.parametrize(("error", "says"), CUDA_FAILURES)
def test_a_model_that_fails_on_cuda_runs_on_the_cpu_and_says_why(
    tmp_path: Path, broken_gpu: list[BrokenGpu], caplog: pytest.LogCaptureFixture, error: Exception | None, says: str
) -> None:
    write_model(tmp_path)
    models = Repository(tmp_path, on_cuda(broken_gpu, error), default="toy", open_on_cpu=Opener())
    loaded = models.load("toy/1")
    assert (loaded.device, loaded.provider) == ("cpu", "CPUExecutionProvider")
    assert loaded.golden.passed
    assert loaded.fallback_reason is not None
    assert says in loaded.fallback_reason
    assert [model._runner for model in broken_gpu] == [None]  # closed
    assert [says in record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [True]


@pytest.mark.parametrize(("error", "says"), CUDA_FAILURES)
def test_without_a_fallback_a_model_that_fails_on_cuda_is_refused(
    tmp_path: Path, broken_gpu: list[BrokenGpu], error: Exception | None, says: str
) -> None:
    write_model(tmp_path)
    with pytest.raises(StartupError, match=says):
        Repository(tmp_path, on_cuda(broken_gpu, error), default="toy").load_all()
    assert [model._runner for model in broken_gpu] == [None]


def test_after_a_lost_device_every_model_runs_on_the_cpu(tmp_path: Path, broken_gpu: list[BrokenGpu]) -> None:
    """CUDA fails every call of the process then, those of models that were verified before too."""
    for name in ("a", "b", "c"):
        write_model(tmp_path, name)

    def open_models(data: bytes) -> list[OnnxModel]:
        model = OnnxModel(data, device="cuda")
        return [model] if model.card.name == "a" else list(on_cuda(broken_gpu, DeviceLost("CUDA failure 700"))(data))

    models = Repository(tmp_path, open_models, default="a", open_on_cpu=Opener())
    for loaded in models.load_all().values():
        assert loaded.device == "cpu"
        assert loaded.fallback_reason == "b/1/model.onnx: does not run on CPUExecutionProvider: CUDA failure 700"
    assert len(broken_gpu) == 1  # c was not tried there


def test_a_failure_of_one_model_leaves_the_others_on_cuda(tmp_path: Path, broken_gpu: list[BrokenGpu]) -> None:
    for name in ("a", "b"):
        write_model(tmp_path, name)

    def open_models(data: bytes) -> list[OnnxModel]:
        model = OnnxModel(data, device="cuda")
        return [model] if model.card.name == "b" else list(on_cuda(broken_gpu, DeviceOutOfMemory())(data))

    models = Repository(tmp_path, open_models, default="a", open_on_cpu=Opener())
    assert [loaded.device for loaded in models.load_all().values()] == ["cpu", "cuda"]


def test_a_damaged_file_is_not_cudas_fault(tmp_path: Path, broken_gpu: list[BrokenGpu]) -> None:
    truncate(write_model(tmp_path) / "golden.npz")
    opener = Opener()
    with pytest.raises(StartupError, match=r"golden\.npz: damaged"):
        Repository(tmp_path, on_cuda(broken_gpu, None), default="toy", open_on_cpu=opener).load_all()
    assert opener.opened == []


def test_a_model_that_fails_on_the_cpu_too_is_refused(tmp_path: Path, broken_gpu: list[BrokenGpu]) -> None:
    other_rows(write_model(tmp_path) / "golden.npz")
    opener = Opener()
    with pytest.raises(StartupError, match=r"CPUExecutionProvider differs by 0\.0002"):
        Repository(tmp_path, on_cuda(broken_gpu, None), default="toy", open_on_cpu=opener).load_all()
    assert opener.closed()


# Half precision


def test_half_precision_needs_its_own_file(tmp_path: Path) -> None:
    write_model(tmp_path)
    line = refusal(tmp_path, precision="fp16")
    assert line == "IGN_PRECISION=fp16: toy/1/model.fp16.onnx is not there; use fp32, or export it"


def test_half_precision_answers_to_the_same_golden_rows_with_its_own_tolerance(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    data = model_bytes(make_card(), scale=1.005)
    (folder / "model.fp16.onnx").write_bytes(data)
    loaded = repository(tmp_path, precision="fp16").load_all()["toy/1"]
    assert loaded.digest == hashlib.sha256(data).hexdigest()
    assert 1e-4 < loaded.golden.difference < loaded.golden.tolerance == 1e-2
