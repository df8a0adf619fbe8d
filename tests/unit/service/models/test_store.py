"""Models of an object store, by the client for S3, GCS and Azure, here on a folder that stands for a bucket."""

import json
import shutil
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from service.domain.errors import StartupError
from service.models.repository import Repository
from service.models.store import ModelStore
from service.runtime.onnx_model import OnnxModel
from tests.helpers.onnx_models import write_model

obstore = pytest.importorskip("obstore", reason="needs the extra store")
GenericError = pytest.importorskip("obstore.exceptions").GenericError


NOT_COPIED = "toy/2: not copied from the store; the log says why"  # which callers read


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    for version in "12":
        write_model(tmp_path / "bucket", version=version)
    (tmp_path / "bucket" / "toy" / "1" / "metrics.json").write_text("{}")
    (tmp_path / "bucket" / "README.md").write_text("models")
    return tmp_path / "bucket"


def store_of(bucket: Path) -> ModelStore:
    return ModelStore(bucket.as_uri(), bucket.parent / "cache" / "copies")


def repository(bucket: Path, default: str = "toy", **options: Any) -> Repository:
    store = store_of(bucket)
    return Repository(
        store.folder, lambda data: [OnnxModel(data, device="cpu")], default=default, store=store, **options
    )


def files(bucket: Path) -> dict[str, bytes]:
    """What lies in the cache."""
    folder = store_of(bucket).folder
    found = [file for file in folder.rglob("*") if file.is_file() and file.name != ".copied.json"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def times(bucket: Path) -> list[int]:
    return sorted(file.stat().st_mtime_ns for file in store_of(bucket).folder.rglob("*.*") if file.suffix != ".json")


def test_models_of_a_store_serve_and_changes_are_copied_on_request(bucket: Path) -> None:
    assert list(repository(bucket).load_all().models) == ["toy/1", "toy/2"]
    before, first = files(bucket), times(bucket)
    assert before == {
        f"toy/{v}/{name}": (bucket / "toy" / v / name).read_bytes()
        for v in "12"
        for name in ("model.onnx", "golden.npz")
    }
    store = store_of(bucket)
    assert store.refresh() == {}
    assert times(bucket) == first  # nothing was copied again
    shutil.rmtree(bucket / "toy" / "1")
    shutil.rmtree(bucket / "toy" / "2")
    write_model(bucket, version="2", scale=0.5)
    assert store.refresh() == {}
    assert sorted(files(bucket)) == ["toy/2/golden.npz", "toy/2/model.onnx"]
    assert files(bucket)["toy/2/model.onnx"] == (bucket / "toy" / "2" / "model.onnx").read_bytes()
    assert not (store.folder / "toy" / "1").exists()
    (store.folder / "toy" / "2" / "model.onnx").unlink()
    assert store.refresh() == {}
    assert sorted(files(bucket)) == ["toy/2/golden.npz", "toy/2/model.onnx"]


@pytest.mark.parametrize("parent", ["3", ""])
def test_a_store_may_hold_one_model_as_kserve_mounts_it(bucket: Path, parent: str) -> None:
    shutil.rmtree(bucket / "toy")
    write_model(bucket / "staging", version="3").rename(bucket / "3")
    shutil.rmtree(bucket / "staging")
    if not parent:
        for file in (bucket / "3").iterdir():
            file.rename(bucket / file.name)
    here = repository(bucket, "mnist", only_a_guess=True)
    assert list(here.load_all().models) == ["toy/3"]
    assert here.default == "toy"
    write_model(bucket / "staging", version="4", scale=0.5)
    for name in ("model.onnx", "golden.npz"):
        (bucket / "staging" / "toy" / "4" / name).replace(bucket / parent / name)
    shutil.rmtree(bucket / "staging")
    failures = repository(bucket, "mnist", only_a_guess=True)
    if parent:
        with pytest.raises(StartupError, match=r"3/model.onnx: its card says toy/4"):
            failures.load_all()
    else:
        assert list(failures.load_all().models) == ["toy/4"]
    assert len(files(bucket)) == 2


def test_without_the_store_the_service_starts_with_what_it_has(bucket: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StartupError, match=r"IGN_MODEL_DIR=file:///.*/none: "):
        repository(bucket / "none").load_all()
    repository(bucket).load_all()
    bucket.rename(bucket.with_name("away"))
    assert list(repository(bucket).load_all().models) == ["toy/1", "toy/2"]
    assert "the models that were copied earlier are used" in caplog.text
    with pytest.raises(StartupError, match="IGN_MODEL_DIR=file:///"):
        store_of(bucket).refresh()
    bucket.mkdir()  # emptied
    assert list(repository(bucket).load_all().models) == ["toy/1", "toy/2"]


@pytest.mark.parametrize("fault", [GenericError("gone"), ValueError("\x1b[2J"), KeyError("path"), RecursionError()])
def test_whatever_the_store_raises_the_copies_serve_and_the_text_is_one_line(
    bucket: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise fault

    repository(bucket).load_all()
    monkeypatch.setattr(obstore, "list", fail)
    assert list(repository(bucket).load_all().models) == ["toy/1", "toy/2"]
    with pytest.raises(StartupError, match=r"IGN_MODEL_DIR=file:///[ -~]+$"):
        store_of(bucket).refresh()


# A state file that something else wrote


HOSTILE = ("{outside}", "../../y", "toy/../../../y", ".copied.json", "/toy/1/model.onnx")


@pytest.mark.parametrize(
    "state",
    [
        json.dumps(dict.fromkeys(HOSTILE, (1, "a"))),
        json.dumps({"x" * 300 + "/1/model.onnx": (1, "a")}),
        json.dumps({"toy/1/model.onnx": 3}),
        '{"toy/1/model.onnx": [1e999, "a"]}',
        json.dumps({"toy/1/model.onnx": [[], {}]}),
        "[1, 2]",
        "[" * 100_000,
        "nonsense",
    ],
)
def test_a_state_file_removes_only_copies_and_stops_nothing(bucket: Path, state: str) -> None:
    outside, other = bucket.parent / "x", bucket.parent / "y"
    repository(bucket).load_all()
    for file in (outside, other):
        file.write_text("mine")
    (store_of(bucket).folder / ".copied.json").write_text(state.replace("{outside}", str(outside)))
    bucket.rename(bucket.with_name("away"))
    assert list(repository(bucket).load_all().models) == ["toy/1", "toy/2"]
    bucket.with_name("away").rename(bucket)
    assert store_of(bucket).refresh() == {}
    assert (outside.read_text(), other.read_text()) == ("mine", "mine")
    assert len(files(bucket)) == 4


# What is too much


def listed(path: str, size: int) -> dict[str, Any]:
    return {"path": path, "size": size, "e_tag": None}


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        (repeat([listed("notes.txt", 1)] * 1000), "holds more than 100000 objects"),
        ([[listed(f"toy/{version}/model.onnx", 2**31 - 1) for version in range(1, 100)]], "more than 64 GiB"),
    ],
)
def test_a_store_without_end_is_refused(bucket: Path, monkeypatch: pytest.MonkeyPatch, chunks: Any, says: str) -> None:
    monkeypatch.setattr(obstore, "list", lambda _: chunks)
    with pytest.raises(StartupError, match=f"IGN_MODEL_DIR=file:///.*{says}"):
        store_of(bucket).refresh()


def test_of_an_object_no_more_is_read_than_the_store_lists(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    def endless(*_: Any, **__: Any) -> Iterator[bytes]:
        while True:
            sent.append(bytes(1000))
            yield sent[-1]

    monkeypatch.setattr(
        obstore, "list", lambda _: [[listed("toy/1/model.onnx", 5500), listed("toy/2/model.onnx", 2**31)]]
    )
    monkeypatch.setattr(obstore, "get", endless)
    assert sorted(store_of(bucket).refresh()) == ["toy/1", "toy/2"]
    assert len(sent) == 6
    assert files(bucket) == {}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (GenericError("cut off at http://inner:1/bucket\n\nDebug source"), "cut off at http://inner:1/bucket\n"),
        (None, "4 bytes came, not "),
    ],
)
def test_a_version_that_cannot_be_copied_leaves_the_earlier_one_and_the_others(
    bucket: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception | None, says: str
) -> None:
    get = obstore.get

    def fail(store: Any, path: str, **options: Any) -> Any:
        if path != "toy/2/model.onnx":
            return get(store, path, **options)

        def halves() -> Iterator[bytes]:
            yield b"half"
            if fault is not None:
                raise fault

        return halves()

    monkeypatch.setattr(obstore, "get", fail)
    models, failures = repository(bucket, "toy/1").load_all()
    assert list(models) == list(models)[:1] == ["toy/1"]
    assert failures == {"toy/2": NOT_COPIED}
    assert f"toy/2: not copied: toy/2/model.onnx: {says}" in caplog.text
    monkeypatch.undo()
    assert list(repository(bucket).load_all().models) == ["toy/1", "toy/2"]
    before = files(bucket)
    write_model(bucket / "staging", version="2", scale=0.5)
    for name in ("model.onnx", "golden.npz"):
        (bucket / "staging" / "toy" / "2" / name).replace(bucket / "toy" / "2" / name)
    monkeypatch.setattr(obstore, "get", fail)
    assert store_of(bucket).refresh() == {"toy/2": NOT_COPIED}
    assert files(bucket) == before  # also golden.npz, which came whole


def test_an_object_that_changes_while_it_is_copied_is_refused(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get = obstore.get

    def change(store: Any, path: str, **options: Any) -> Any:
        (bucket / "toy" / "2" / "model.onnx").write_bytes(b"other")
        return get(store, path, **options)

    monkeypatch.setattr(obstore, "get", change)
    assert store_of(bucket).refresh() == {"toy/2": NOT_COPIED}
    assert sorted(files(bucket)) == ["toy/1/golden.npz", "toy/1/model.onnx"]


def test_a_cache_that_cannot_be_written_is_named(bucket: Path) -> None:
    (bucket.parent / "cache").write_text("a file")
    with pytest.raises(StartupError, match=r".*/copies: "):
        repository(bucket).load_all()
