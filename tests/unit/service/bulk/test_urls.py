"""Sources by URL, and their errors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from service.bulk.sources import open_source
from tests.unit.service.bulk.conftest import Run, manifest, output_files, output_images, zipped

FAR = "memory://far"


@pytest.fixture
def far(pictures: dict[str, bytes], tmp_path: Path) -> Iterator[None]:
    """The images in a folder and in an archive of a file system in memory."""
    files = MemoryFileSystem()
    for name, content in pictures.items():
        files.pipe_file(f"/far/{name}", content)
    files.pipe_file("/far.zip", zipped(tmp_path / "in.zip", pictures).read_bytes())
    yield
    files.rm("/far", recursive=True)
    files.rm("/far.zip")


@pytest.mark.usefixtures("far")
def test_by_url(bulk: Run, tmp_path: Path) -> None:
    assert bulk("project", tmp_path / "in", tmp_path / "folder").status == 0
    for n, url in enumerate((FAR, f"{FAR}.zip", f"zip://::{tmp_path / 'in.zip'}")):
        output = tmp_path / str(n)
        assert bulk("project", url, output).status == 0
        assert output_files(output).keys() == output_files(tmp_path / "folder").keys()
        assert output_images(output) == output_images(tmp_path / "folder")
        assert manifest(output) == manifest(tmp_path / "folder")
    assert bulk("project", f"zip://below::{tmp_path / 'in.zip'}", tmp_path / "below").status == 0
    assert [line["source"] for line in manifest(tmp_path / "below")] == ["a.jpg", "b.webp"]


def raising(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("method", "source", "status", "message"),
    [
        ("find", FAR, 2, "memory://far: cannot be read: no credentials"),
        ("open", FAR, 3, "stopped: [Errno 5] no credentials"),
        ("read", FAR, 3, "stopped: [Errno 5] no credentials"),
        ("read", f"{FAR}.zip", 2, "memory://far.zip: cannot be read: no credentials"),
        ("", "memory://nothing", 2, "memory://nothing"),
    ],
)
@pytest.mark.usefixtures("far")
def test_errors_of_fsspec_backends_are_one_line(
    method: str, source: str, status: int, message: str, bulk: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BackendError(Exception):
        """No OSError."""

    if method:
        monkeypatch.setattr(
            MemoryFile if method == "read" else MemoryFileSystem, method, raising(BackendError("no credentials"))
        )
    ran = bulk("score", source, tmp_path / "out")
    monkeypatch.undo()
    assert ran.status == status
    assert message in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("error", [PermissionError(13, "expired"), ValueError("expired")])
@pytest.mark.usefixtures("far")
def test_an_archive_out_of_reach_stops_the_run(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(f"{FAR}.zip", column="", limit=4096)
    monkeypatch.setattr(MemoryFile, "read", raising(error))
    with pytest.raises(OSError, match="expired"):
        source.read(0, 1)
