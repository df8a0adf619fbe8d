"""Runs of the command in this process, on tiny real models, in a folder of their own."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from service.bulk.__main__ import main
from tests.contract.conftest import models as models
from tests.contract.conftest import service as service
from tests.helpers.folders import contents, write
from tests.helpers.pictures import noise, save


class RunResult(NamedTuple):
    """Result of one run of the command."""

    status: int
    out: str
    err: str


Run = Callable[[str], RunResult]


@pytest.fixture
def bulk(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """`python -m service.bulk` in `tmp_path`, with the given arguments."""
    monkeypatch.chdir(tmp_path)
    for name, value in service_environment(models).items():
        monkeypatch.setenv(name, value)

    def run(arguments: str) -> RunResult:
        status = main(arguments.split())
        captured = capsys.readouterr()
        return RunResult(status, captured.out, captured.err)

    return run


@pytest.fixture
def arrow() -> Any:
    pytest.importorskip(
        "pyarrow", reason="pyarrow is not installed, so nothing was read from Parquet"
    )
    import pyarrow
    import pyarrow.parquet

    return pyarrow


def service_environment(models: Path) -> dict[str, str]:
    return {
        "IGN_MODEL_DIR": str(models),
        "IGN_DEFAULT_MODEL": "grey",
        "IGN_DEVICE": "cpu",
        "IGN_THREADS": "1",
        "IGN_MAX_BATCH_ROWS": "3",  # so that a shard is more than a batch
        "IGN_MAX_BODY_BYTES": "4096",
        "IGN_MAX_PIXELS": "1000",
        # of a server, and ignored
        "IGN_WORKERS": "4",
        "IGN_PRIVATE_ENDPOINTS": "page",
        "IGN_QUEUE_ROWS": "2",
        "IGN_API_KEYS_FILE": "nothing.json",
    }


def picture(seed: int, size: tuple[int, int] = (8, 8), form: str = "PNG") -> bytes:
    """A random grey picture of this size."""
    return save(noise(*size, seed=seed), form)


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, bytes]:
    """Ten images: eight in a folder and two in a subfolder; `tmp_path / "in"`."""
    files = {f"{n:02}.png": picture(n) for n in range(8)}
    files |= {
        "below/a.jpg": picture(8, (12, 9), "JPEG"),
        "below/b.webp": picture(9, (5, 20), "WEBP"),
    }
    write(tmp_path / "in", files)
    return files


def zipped(file: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def manifest(output: str = "out") -> list[dict[str, Any]]:
    with Path(output, "manifest.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def errors(output: str = "out") -> list[str | None]:
    """The code of each image."""
    return [line["error"] for line in manifest(output)]


def output_images(output: str = "out") -> list[bytes]:
    """Every picture of a run, in order."""
    return [
        Path(output, line["picture"]).read_bytes() for line in manifest(output) if line["picture"]
    ]


def output_files(output: str | Path = "out") -> dict[str, bytes]:
    """All files of a run."""
    return contents(output)
