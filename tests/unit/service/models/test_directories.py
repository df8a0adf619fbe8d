"""How a model directory may look: KServe's mounts, snapshots of the Hugging Face Hub, pins and broken versions."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from service.domain.errors import StartupError
from service.models.repository import Repository
from service.runtime.onnx_model import OnnxModel
from tests.helpers.onnx_models import reference, sample_rows, write_golden, write_model


def repository(directory: Path, default: str = "toy", **options: Any) -> Repository:
    return Repository(directory, lambda data: [OnnxModel(data, device="cpu")], default=default, **options)


def refusal(directory: Path, default: str = "toy", **options: Any) -> str:
    with pytest.raises(StartupError) as caught:
        repository(directory, default, **options).load_all()
    assert "\n" not in caught.value.detail
    return caught.value.detail


@pytest.mark.parametrize(
    ("refs", "default"),
    [
        (("faces/1", "faces/12"), "faces"),
        (("faces/1", ".hidden/1", "No Name/1"), "faces"),
        (("stamps/1", "faces/2"), "faces"),
        (("avatars/1", "mnist/1"), "mnist"),
    ],
)
def test_without_a_default_model_it_is_mnist_or_the_first(tmp_path: Path, refs: tuple[str, ...], default: str) -> None:
    for ref in refs:
        (tmp_path / ref).mkdir(parents=True)
    guess = repository(tmp_path, "mnist", only_a_guess=True)
    guess.find_all()
    assert guess.default == default
    chosen = repository(tmp_path, "mnist")
    chosen.find_all()
    assert chosen.default == "mnist"


def test_files_of_a_snapshot_of_the_hub_may_be_its_blobs(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--ign--toys" / "snapshots" / "1b2c", tmp_path / "models--ign--toys" / "blobs"
    folder = write_model(snapshot / "deep")
    blobs.mkdir()
    for file in list(folder.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(f"../../../../../blobs/{file.name}")
    (tmp_path / "current").symlink_to(snapshot)
    assert list(repository(tmp_path / "current" / "deep").load_all().models) == ["toy/1"]
    (folder / "golden.npz").unlink()
    shutil.copy(blobs / "golden.npz", tmp_path / "outside")
    (folder / "golden.npz").symlink_to(tmp_path / "outside")
    assert refusal(snapshot / "deep") == "toy/1/golden.npz: leads out of the model directory"


def mounted(directory: Path, *versions: str) -> Path:
    """A model as KServe mounts it: without the folder of its name, or, without ``versions``, without any."""
    for version in versions or "3":
        write_model(directory / "staging", version=version)
        (directory / "staging" / "toy" / version).rename(directory / version)
    shutil.rmtree(directory / "staging")
    if not versions:
        for file in (directory / "3").iterdir():
            file.rename(directory / file.name)
        (directory / "3").rmdir()
    return directory


def test_a_model_is_found_where_kserve_mounts_it(tmp_path: Path) -> None:
    here = repository(mounted(tmp_path / "flat"))
    assert list(here.load_all().models) == here.find("toy") == ["toy/3"]
    assert here.find("other") == []
    write_golden(tmp_path / "flat", sample_rows(2), reference(sample_rows(2)), digest="0" * 64)
    assert here.files("toy/3") != ()
    assert refusal(tmp_path / "flat").startswith("golden.npz: belongs to another model.onnx")
    (tmp_path / "flat" / "model.onnx").write_bytes(b"x")
    assert refusal(tmp_path / "flat").startswith("model.onnx: not a model")


def test_one_of_several_mounted_versions_may_be_broken(tmp_path: Path) -> None:
    here = repository(mounted(tmp_path, "3", "10", "11"), default="toy/3")
    assert list(here.load_all().models) == ["toy/3", "toy/10", "toy/11"]
    (tmp_path / "11" / "model.onnx").write_bytes(b"x")
    (tmp_path / "10").rename(tmp_path / "9")
    models, failures = here.load_all()
    assert list(models) == ["toy/3"]
    assert failures["toy/9"] == "9/model.onnx: its card says toy/10"
    assert failures["toy/11"].startswith("11/model.onnx: not a model")
    for version in "39":
        (tmp_path / version / "model.onnx").write_bytes(b"x")
    assert refusal(tmp_path).startswith("3/model.onnx: not a model")


def test_whatever_fails_is_a_line_in_the_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path, "a")
    write_model(tmp_path)
    here = repository(tmp_path, "a")
    for error, line in (
        (PermissionError(13, "Permission denied", str(tmp_path)), "toy/1: Permission denied"),
        (ZeroDivisionError("secret"), "toy/1: loading it failed in a way nobody foresaw; the log says how"),
    ):
        load = here.load
        with monkeypatch.context() as patch:
            patch.setattr(here, "load", lambda ref, e=error, f=load: f(ref) if ref == "a/1" else _raise(e))
            assert here.load_all().failures == {"toy/1": line}
    assert "ZeroDivisionError" in caplog.text


def _raise(error: Exception) -> None:
    raise error


def test_a_pinned_version_must_be_there(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert refusal(tmp_path, pins={"toy": "2"}) == "IGN_VERSIONS=toy=2: not there; there is toy/1"
