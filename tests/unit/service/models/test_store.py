"""Models of an object store, by the client for S3, GCS and Azure, here on a folder that stands for
a bucket.
"""

import shutil
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from service.domain.errors import StartupError
from service.models.repository import Repository
from service.models.store import ModelStore
from service.runtime.onnx_model import OnnxModel
from tests.helpers.onnx_models import write_model

obstore = pytest.importorskip("obstore", reason="needs the extra store")
GenericError = pytest.importorskip("obstore.exceptions").GenericError

NOT_COPIED = {"toy/2": "toy/2: not copied from the store; the log says why"}  # which callers read


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    for version in "12":
        write_model(tmp_path / "bucket", version=version)
    (tmp_path / "bucket" / "toy" / "1" / "metrics.json").write_text("{}")
    return tmp_path / "bucket"


def store_of(bucket: Path) -> ModelStore:
    return ModelStore(bucket.as_uri(), bucket.parent / "cache" / "copies")


def repository(bucket: Path, default: str = "toy") -> Repository:
    store = store_of(bucket)
    return Repository(
        store.folder,
        lambda data: [OnnxModel(data)],
        default=default,
        only_a_guess=True,
        store=store,
    )


def served(bucket: Path) -> list[str]:
    return list(repository(bucket).load_all().models)


def copies(bucket: Path) -> dict[str, tuple[bytes, int]]:
    """What lies in the cache, and when it was written."""
    folder = store_of(bucket).folder
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*.*")
        if file.suffix in (".onnx", ".npz")
    }


def replace(folder: Path, version: str) -> None:
    """Put other files into a folder."""
    fresh = write_model(folder.parent / f"staging{version}", version=version, scale=0.5)
    shutil.copytree(fresh, folder, dirs_exist_ok=True)
    shutil.rmtree(folder.parent / f"staging{version}")


def test_models_of_a_store_serve_and_changes_are_copied_on_request(bucket: Path) -> None:
    assert served(bucket) == ["toy/1", "toy/2"]
    before = copies(bucket)
    assert sorted(before) == [
        f"toy/{version}/{name}" for version in "12" for name in ("golden.npz", "model.onnx")
    ]
    store = store_of(bucket)
    assert store.refresh() == {}
    assert copies(bucket) == before  # nothing was copied again
    shutil.rmtree(bucket / "toy" / "1")
    replace(bucket / "toy" / "2", "2")
    (store.folder / "toy" / "2" / "golden.npz").unlink()
    assert store.refresh() == {}
    assert {name: content for name, (content, _) in copies(bucket).items()} == {
        f"toy/2/{name}": (bucket / "toy" / "2" / name).read_bytes()
        for name in ("model.onnx", "golden.npz")
    }
    assert not (store.folder / "toy" / "1").exists()


def test_without_a_store_or_a_cache_the_service_does_not_start(bucket: Path) -> None:
    with pytest.raises(StartupError, match=r"IGN_MODEL_DIR=file:///.*/none: "):
        served(bucket / "none")
    shutil.rmtree(bucket.parent / "cache", ignore_errors=True)
    (bucket.parent / "cache").write_text("a file")
    with pytest.raises(StartupError, match=r".*/copies: "):
        served(bucket)


@pytest.mark.parametrize(
    "fault", [None, GenericError("gone"), ValueError("\x1b[2J"), RecursionError()]
)
def test_whatever_the_store_raises_the_copies_serve_and_the_text_is_one_line(
    bucket: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    served(bucket)
    if fault is None:
        bucket.rename(bucket.with_name("away"))
    else:
        monkeypatch.setattr(obstore, "list", Mock(side_effect=fault))
    assert served(bucket) == ["toy/1", "toy/2"]
    with pytest.raises(StartupError, match=r"IGN_MODEL_DIR=file:///[ -~]+$"):
        store_of(bucket).refresh()
    if fault is None:
        bucket.mkdir()  # emptied
        assert served(bucket) == ["toy/1", "toy/2"]


def listed(path: str, size: int) -> dict[str, Any]:
    return {"path": path, "size": size, "e_tag": None}


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        (repeat([listed("notes.txt", 1)] * 1000), "holds more than 100000 objects"),
        (
            [[listed(f"toy/{version}/model.onnx", 2**31 - 1) for version in range(1, 100)]],
            "more than 64 GiB",
        ),
    ],
)
def test_a_store_without_end_is_refused(
    bucket: Path, monkeypatch: pytest.MonkeyPatch, chunks: Any, says: str
) -> None:
    monkeypatch.setattr(obstore, "list", lambda _: chunks)
    with pytest.raises(StartupError, match=f"IGN_MODEL_DIR=file:///.*{says}"):
        store_of(bucket).refresh()


def test_of_an_object_no_more_is_read_than_the_store_lists(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Mock(return_value=bytes(1000))
    chunks = [[listed("toy/1/model.onnx", 5500), listed("toy/2/model.onnx", 2**31)]]
    monkeypatch.setattr(obstore, "list", lambda _: chunks)
    monkeypatch.setattr(obstore, "get", lambda *_, **__: iter(sent, b""))
    assert sorted(store_of(bucket).refresh()) == ["toy/1", "toy/2"]
    assert (sent.call_count, copies(bucket)) == (6, {})


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (
            GenericError("cut off at http://inner:1/bucket\n\nDebug source"),
            "cut off at http://inner:1/bucket\n",
        ),
        (None, "4 bytes came, not "),
    ],
)
def test_a_version_that_cannot_be_copied_leaves_the_earlier_one_and_the_others(
    bucket: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Exception | None,
    says: str,
) -> None:
    get = obstore.get

    def fail(store: Any, path: str, **options: Any) -> Any:
        return halves() if path == "toy/2/model.onnx" else get(store, path, **options)

    def halves() -> Iterator[bytes]:
        yield b"half"
        if fault is not None:
            raise fault

    with monkeypatch.context() as patch:
        patch.setattr(obstore, "get", fail)
        models, failures = repository(bucket, "toy/1").load_all()
    assert (list(models), failures) == (["toy/1"], NOT_COPIED)
    assert f"toy/2: not copied: toy/2/model.onnx: {says}" in caplog.text
    assert served(bucket) == ["toy/1", "toy/2"]
    before = copies(bucket)
    replace(bucket / "toy" / "2", "2")
    monkeypatch.setattr(obstore, "get", fail)
    assert store_of(bucket).refresh() == NOT_COPIED
    assert copies(bucket) == before  # also golden.npz, which came whole
