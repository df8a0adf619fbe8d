"""The example for `tritonclient`, against the real service with tiny models."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.harness import Service, serving, settings, write_models
from tests.helpers.live import ROOT, environment

MOST_LINES = 30


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(settings(write_models(tmp_path_factory.mktemp("models")))) as running:
        yield running


def example(name: str, *arguments: str, folder: Path) -> str:
    """What an example prints."""
    file = ROOT / "examples" / name
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    done = subprocess.run(
        [sys.executable, "-W", "error", str(file), *arguments],
        cwd=folder,
        env=environment(NO_PROXY="*"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_triton_client(service: Service, tmp_path: Path) -> None:
    printed = example("triton_client.py", "{}:{}".format(*service.address), "grey", folder=tmp_path)
    distances = [float(found) for found in re.findall(r"^step \d: .* = (\d\.\d{4})$", printed, flags=re.MULTILINE)]
    assert len(distances) == 3
    assert distances[0] > distances[1] > distances[2] > 0  # the tiny network contracts
