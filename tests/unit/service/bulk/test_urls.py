"""Pictures by URL, and what goes wrong there."""

from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.unit.service.bulk.conftest import Run, everything, made, manifest, picture, zipped


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
    assert everything(tmp_path / "remote").keys() == everything(tmp_path / "folder").keys()
    assert made(tmp_path / "remote") == made(tmp_path / "folder") == made(tmp_path / "archive")
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


class Nobody(Exception):
    """What the library behind a package of fsspec's may raise: no OSError."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A method of fsspec's memory that fails from now on, unless another is named."""
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    def fails(method: str) -> None:
        def failed(*_: Any, **__: Any) -> Any:
            raise Nobody("no credentials")

        monkeypatch.setattr(MemoryFile if method == "read" else MemoryFileSystem, method, failed)

    files = MemoryFileSystem()
    files.pipe_file("/far/a.png", picture(1))
    files.pipe_file("/far.zip", b"PK")
    yield fails
    monkeypatch.undo()
    files.rm("/far", recursive=True)
    files.rm("/far.zip")


@pytest.mark.parametrize(
    ("method", "source", "status", "told"),
    [
        ("find", "memory://far", 2, "memory://far: cannot be read: no credentials"),
        ("open", "memory://far", 3, "stopped: [Errno 5] no credentials"),
        ("read", "memory://far", 3, "stopped: [Errno 5] no credentials"),
        ("read", "memory://far.zip", 2, "memory://far.zip: cannot be read: no credentials"),
    ],
)
def test_whatever_the_packages_of_fsspec_raise_is_told(
    method: str, source: str, status: int, told: str, failing: Any, bulk: Run, tmp_path: Path
) -> None:
    failing(method)
    ran = bulk("score", source, tmp_path / "out")
    assert ran.status == status
    assert told in ran.err
    assert "Traceback" not in ran.err


def test_an_unknown_kind_of_url(bulk: Run, tmp_path: Path) -> None:
    ran = bulk("score", "nonsense://bucket", tmp_path / "out")
    assert ran.status == 2
    assert "nonsense" in ran.err
