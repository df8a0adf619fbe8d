"""Sources by URL, and their errors."""

from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from service.bulk.sources import open_source
from tests.unit.service.bulk.conftest import Run, manifest, output_files, output_images, picture, zipped


def test_by_url(bulk: Run, pictures: dict[str, bytes], tmp_path: Path) -> None:
    memory: Any = fsspec.filesystem("memory")
    for name, content in pictures.items():
        memory.pipe_file(f"/bucket/{name}", content)
    memory.pipe_file("/bucket.zip", zipped(tmp_path / "in.zip", pictures).read_bytes())
    try:
        assert bulk("project", tmp_path / "in", tmp_path / "folder").status == 0
        assert bulk("project", "memory://bucket", tmp_path / "remote").status == 0
        assert bulk("project", "memory://bucket.zip", tmp_path / "archive").status == 0
        ran = bulk("project", "memory://nothing", tmp_path / "nothing")
    finally:
        memory.rm("/bucket", recursive=True)
        memory.rm("/bucket.zip")
    assert output_files(tmp_path / "remote").keys() == output_files(tmp_path / "folder").keys()
    assert (
        output_images(tmp_path / "remote") == output_images(tmp_path / "folder") == output_images(tmp_path / "archive")
    )
    assert manifest(tmp_path / "remote") == manifest(tmp_path / "folder") == manifest(tmp_path / "archive")
    assert ran.status == 2
    assert "memory://nothing" in ran.err


def test_within_an_archive_by_url(bulk: Run, pictures: dict[str, bytes], tmp_path: Path) -> None:
    archive = zipped(tmp_path / "in.zip", pictures)
    assert bulk("project", tmp_path / "in", tmp_path / "folder").status == 0
    assert bulk("project", f"zip://::{archive}", tmp_path / "all").status == 0
    assert manifest(tmp_path / "all") == manifest(tmp_path / "folder")
    assert bulk("project", f"zip://below::{archive}", tmp_path / "below").status == 0
    assert [line["source"] for line in manifest(tmp_path / "below")] == ["a.jpg", "b.webp"]


class BackendError(Exception):
    """An exception of a backend of fsspec that is no OSError."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a method of the in-memory file system fail."""

    def fails(method: str) -> None:
        def failed(*_: Any, **__: Any) -> Any:
            raise BackendError("no credentials")

        monkeypatch.setattr(MemoryFile if method == "read" else MemoryFileSystem, method, failed)

    files = MemoryFileSystem()
    files.pipe_file("/far/a.png", picture(1))
    files.pipe_file("/far.zip", b"PK")
    yield fails
    monkeypatch.undo()
    files.rm("/far", recursive=True)
    files.rm("/far.zip")


@pytest.mark.parametrize(
    ("method", "source", "status", "message"),
    [
        ("find", "memory://far", 2, "memory://far: cannot be read: no credentials"),
        ("open", "memory://far", 3, "stopped: [Errno 5] no credentials"),
        ("read", "memory://far", 3, "stopped: [Errno 5] no credentials"),
        ("read", "memory://far.zip", 2, "memory://far.zip: cannot be read: no credentials"),
    ],
)
def test_errors_of_fsspec_backends_are_one_line(
    method: str, source: str, status: int, message: str, failing: Any, bulk: Run, tmp_path: Path
) -> None:
    failing(method)
    ran = bulk("score", source, tmp_path / "out")
    assert ran.status == status
    assert message in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("error", [PermissionError(13, "expired"), ValueError("expired")])
def test_an_archive_out_of_reach_stops_the_run(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bytes:
        raise error

    files = MemoryFileSystem()
    files.pipe_file("/far.zip", zipped(tmp_path / "in.zip", {"a.png": picture(1)}).read_bytes())
    source = open_source("memory://far.zip", column="", limit=4096)
    monkeypatch.setattr(MemoryFile, "read", fail)
    with pytest.raises(OSError, match="expired"):
        source.read(0, 1)
    files.rm("/far.zip")


def test_an_unknown_kind_of_url(bulk: Run, tmp_path: Path) -> None:
    ran = bulk("score", "nonsense://bucket", tmp_path / "out")
    assert ran.status == 2
    assert "nonsense" in ran.err
