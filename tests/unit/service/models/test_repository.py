"""How a model directory may look, which of its models are loaded and verified, and in how many
instances.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.domain.errors import ModelFailure, StartupError
from service.domain.latents import FloatRows
from service.domain.model import DeviceLost, DeviceOutOfMemory
from service.models import instances
from service.models import repository as module
from service.models.instances import open_instances
from service.models.repository import Repository
from service.runtime.onnx_model import OnnxModel
from service.settings import Settings
from tests.helpers.device_fakes import cuda_on_the_cpu, is_closed
from tests.helpers.onnx_models import (
    hungry,
    make_card,
    model_bytes,
    reference,
    sample_rows,
    write_golden,
    write_model,
)


class Opener:
    """Opens real models on the CPU, and remembers them and their threads; not more than
    ``most``.
    """

    def __init__(self, most: int = 64) -> None:
        self.most = most
        self.opened: list[OnnxModel] = []
        self.threads: list[int] = []

    def __call__(self, data: bytes, *, threads: int = 1, **_: Any) -> list[OnnxModel]:
        if len(self.opened) == self.most:
            raise StartupError("no more")
        self.threads.append(threads)
        self.opened.append(self.open(data, threads))
        return self.opened[-1:]

    def open(self, data: bytes, threads: int) -> OnnxModel:
        return OnnxModel(data, device="cpu", threads=threads)

    def make(self, data: bytes, **options: Any) -> OnnxModel:
        return self(data, **options)[0]

    def running(self) -> list[OnnxModel]:
        return [model for model in self.opened if not is_closed(model)]


def repository(directory: Path, default: str = "toy", **options: Any) -> Repository:
    return Repository(directory, Opener(), default=default, **options)


def refusal(directory: Path, default: str = "toy", **options: Any) -> str:
    opener = Opener()
    with pytest.raises(StartupError) as caught:
        Repository(directory, opener, default=default, **options).load_all()
    assert "\n" not in caught.value.detail
    assert not opener.running()
    return caught.value.detail


def test_other_entries_are_passed_over_and_links_within_the_directory_followed(
    tmp_path: Path,
) -> None:
    """As Kubernetes lays volumes out."""
    folder = write_model(tmp_path / "real")
    for name in (".git", "lost+found", "toy/latest", "toy/01", "..data"):
        (tmp_path / "real" / name).mkdir()
    (folder / "model.onnx").rename(tmp_path / "real" / "..data" / "model.onnx")
    (folder / "model.onnx").symlink_to(tmp_path / "real" / "..data" / "model.onnx")
    (tmp_path / "models").symlink_to(tmp_path / "real")
    here = repository(tmp_path / "models")
    assert list(here.load_all().models) == here.find() == here.find("toy") == ["toy/1"]


@pytest.mark.parametrize(
    ("refs", "default"),
    [
        (("faces/1", "faces/12"), "faces"),
        (("stamps/1", "faces/2", ".hidden/1", "No Name/1"), "faces"),
        (("avatars/1", "mnist/1"), "mnist"),
    ],
)
def test_without_a_default_model_it_is_mnist_or_the_first(
    tmp_path: Path, refs: tuple[str, ...], default: str
) -> None:
    for ref in refs:
        (tmp_path / ref).mkdir(parents=True)
    for is_guess in (True, False):
        here = repository(tmp_path, "mnist", only_a_guess=is_guess)
        here.find_all()
        assert here.default == (default if is_guess else "mnist")


def golden_of(scale: float = 1.0, **changes: Any) -> Callable[[Path], object]:
    """Writes other golden rows."""
    x = sample_rows(2)
    return lambda path: write_golden(path.parent, x, reference(x) * np.float32(scale), **changes)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # opening it would wait for ever


def too_hungry(path: Path) -> None:
    path.write_bytes(hungry(2**45))
    write_golden(path.parent, sample_rows(2), sample_rows(2))


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("model.onnx", pipe, "no such file"),
        ("model.onnx", truncate, "not a model onnxruntime can load"),
        (
            "model.onnx",
            lambda file: file.write_bytes(model_bytes(make_card("other"))),
            "its card says other/1",
        ),
        ("model.onnx", too_hungry, "does not run on CPUExecutionProvider: 1 rows do not fit"),
        ("model.onnx", lambda file: os.truncate(file, 10_001), "larger than 10000 bytes"),
        ("golden.npz", Path.unlink, "no such file"),
        ("golden.npz", truncate, "damaged"),
        ("golden.npz", golden_of(digest="0" * 64), "belongs to another model.onnx"),
        ("golden.npz", golden_of(1.01), "CPUExecutionProvider differs by 0.00"),
    ],
)
def test_damage_is_refused_by_file(
    tmp_path: Path,
    file: str,
    damage: Callable[[Path], object],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_MODEL_BYTES", 10_000)
    write_model(tmp_path, "a")  # sound, and loaded first: it has to be closed as well
    write_model(tmp_path, version="2")  # sound, but the default is the other version
    damage(write_model(tmp_path) / file)
    assert refusal(tmp_path, default="toy/1").startswith(f"toy/1/{file}: {says}")


@pytest.mark.parametrize("what", ["toy", "toy/1", "toy/1/model.onnx", "toy/1/golden.npz"])
def test_links_out_of_the_directory_are_refused(tmp_path: Path, what: str) -> None:
    link = tmp_path / "models" / what
    write_model(tmp_path / "models")
    shutil.move(link, tmp_path / "moved")
    link.symlink_to(tmp_path / "moved")
    file = what if "." in what else "toy/1/model.onnx"
    assert refusal(tmp_path / "models") == f"{file}: leads out of the model directory"


def test_files_of_a_snapshot_of_the_hub_may_be_its_blobs(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model" / "snapshots" / "1b2c")
    blobs = tmp_path / "model" / "blobs"
    shutil.copytree(folder, blobs)
    for file in folder.iterdir():
        file.unlink()
        file.symlink_to(f"../../../../blobs/{file.name}")
    assert repository(folder.parents[1]).load_all().failures == {}
    blobs.rename(tmp_path / "blobs")
    blobs.symlink_to(tmp_path / "blobs")
    assert refusal(folder.parents[1]) == "toy/1/model.onnx: leads out of the model directory"


def test_a_model_is_found_where_kserve_mounts_it(tmp_path: Path) -> None:
    """Without a folder of its name, and perhaps without one of its version; one of several may be
    broken.
    """
    for version, place in (
        ("3", "flat"),
        ("3", "models/3"),
        ("10", "models/9"),
        ("11", "models/11"),
    ):
        shutil.copytree(
            write_model(tmp_path / place / "staging", version=version),
            tmp_path / place,
            dirs_exist_ok=True,
        )
        shutil.rmtree(tmp_path / place / "staging")
    (tmp_path / "models" / "11" / "model.onnx").write_bytes(b"x")
    flat = repository(tmp_path / "flat")
    assert list(flat.load_all().models) == flat.find("toy") == ["toy/3"]
    assert flat.find("other") == []
    models, failures = repository(tmp_path / "models", default="toy/3").load_all()
    assert list(models) == ["toy/3"]
    assert failures["toy/9"] == "9/model.onnx: its card says toy/10"
    assert failures["toy/11"].startswith("11/model.onnx: not a model")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/secret"), "toy/1: Permission denied"),
        (
            ZeroDivisionError("secret"),
            "toy/1: loading it failed in a way nobody foresaw; the log says how",
        ),
    ],
)
def test_whatever_fails_is_a_line_in_the_failures(
    tmp_path: Path, error: Exception, line: str
) -> None:
    for name in ("a", "toy"):
        write_model(tmp_path, name)

    def open_models(data: bytes) -> list[OnnxModel]:
        model = OnnxModel(data)
        if model.card.name == "toy":
            raise error
        return [model]

    assert Repository(tmp_path, open_models, default="a").load_all().failures == {"toy/1": line}


class OpenerOnCuda(Opener):
    """Opens models on a stand-in for CUDA. The one of a name raises an error, or without one gives
    other rows.
    """

    def __init__(self, error: Exception | None, name: str) -> None:
        super().__init__()
        self.error = error
        self.name = name

    def open(self, data: bytes, threads: int) -> OnnxModel:
        opener = self

        class Model(OnnxModel):
            def run(self, rows: FloatRows) -> FloatRows:
                fails = self.card.name == opener.name
                if fails and opener.error:
                    raise opener.error
                return super().run(rows) + np.float32(fails)

        return Model(data, device="cuda", threads=threads)


@pytest.mark.parametrize(
    ("error", "says", "devices", "tried"),
    [
        (
            ModelFailure("the model failed", reason="CUDNN 3000"),
            "CUDNN 3000",
            ["cuda", "cpu", "cuda"],
            3,
        ),
        (DeviceOutOfMemory("1 rows do not fit"), "1 rows do not fit", ["cuda", "cpu", "cuda"], 3),
        (None, "differs by 1", ["cuda", "cpu", "cuda"], 3),
        # CUDA fails every call of the process then, those of models that were verified before too.
        (DeviceLost("CUDA failure 209"), "CUDA failure 209", ["cpu"] * 3, 2),
    ],
)
def test_a_model_that_fails_on_cuda_runs_on_the_cpu_and_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    says: str,
    devices: list[str],
    tried: int,
) -> None:
    cuda_on_the_cpu(monkeypatch)
    for name in ("a", "b", "c"):
        write_model(tmp_path, name)
    gpu = OpenerOnCuda(error, "b")
    loaded = Repository(tmp_path, gpu, default="a", open_on_cpu=Opener()).load_all().models
    assert [model.device for model in loaded.values()] == devices
    assert says in (loaded["b/1"].fallback_reason or "")
    assert len(gpu.opened) == tried
    assert all(is_closed(model) == (model.card.name == "b" or tried == 2) for model in gpu.opened)
    with pytest.raises(StartupError, match=says):  # without a fallback
        Repository(tmp_path, OpenerOnCuda(error, "b"), default="b").load_all()


def test_half_precision_answers_to_the_same_golden_rows_with_its_own_tolerance(
    tmp_path: Path,
) -> None:
    file = write_model(tmp_path) / "model.fp16.onnx"
    assert "toy/1/model.fp16.onnx is not there; use fp32" in refusal(tmp_path, precision="fp16")
    file.write_bytes(model_bytes(scale=1.005))
    loaded = repository(tmp_path, precision="fp16").load_all().models["toy/1"]
    assert loaded.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert 1e-4 < loaded.golden.difference < loaded.golden.tolerance == 1e-2


@pytest.mark.parametrize(
    ("granted", "alone", "is_slow", "threads"),
    [
        (1, False, True, [1]),
        (2, False, False, [1]),
        (9, False, False, [8]),
        (9, False, True, [9]),
        (1, True, True, [1]),
        (9, True, False, [1] * 8),
        (20, True, False, [2] * 8),
        (20, True, True, [10, 10]),
    ],
)
def test_a_model_has_one_instance_and_several_in_a_program_that_is_alone(
    monkeypatch: pytest.MonkeyPatch, granted: int, alone: bool, is_slow: bool, threads: list[int]
) -> None:
    monkeypatch.setattr(instances, "available_cpus", lambda: granted)
    monkeypatch.setattr(instances, "_FAST_ROW_S", 0.0 if is_slow else 60.0)
    factory = Opener()
    models = open_instances(factory.make, Settings(device="cpu"), model_bytes(), alone=alone)
    assert models == factory.running()
    assert factory.threads[-len(models) :] == threads


def test_when_one_cannot_be_made_the_others_are_closed() -> None:
    factory = Opener(most=2)
    with pytest.raises(StartupError, match="no more"):
        open_instances(factory.make, Settings(device="cpu", threads=4), model_bytes(), alone=True)
    assert not factory.running()
