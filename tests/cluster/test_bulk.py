"""Bulk work on Ray Data makes what it makes on one machine."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from service.bulk.__main__ import main
from tests.bulk.conftest import environ, everything, picture, write
from tests.cluster.space import own_namespace
from tests.contract.harness import write_models
from tests.live import environment


@pytest.mark.slow
def test_the_same_as_on_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    within = own_namespace()
    if find_spec("pandas") is None or find_spec("pyarrow") is None:
        pytest.skip("Ray Data is not installed, so nothing was run on it")
    models = write_models(tmp_path / "models")
    write(tmp_path / "in", {f"{n}.png": picture(n) for n in range(9)} | {"5.png": b"bad"})
    for name, value in environ(models).items():
        monkeypatch.setenv(name, value)
    options = ["--shard", "2", "--steps", "2"]
    assert main(["project", str(tmp_path / "in"), str(tmp_path / "local"), *options]) == 1
    command = ["project", "in", "out", *options, "--ray", "--actors", "2"]
    for told in (True, False):  # the second time all is done
        done = subprocess.run(
            [*within, sys.executable, "-m", "service.bulk", *command],
            cwd=tmp_path,
            env=environment(RAY_USAGE_STATS_ENABLED="0", **environ(models)),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 1, done.stderr[-5000:]
        assert ("5.png: " in done.stderr) == told
        assert everything(tmp_path / "out") == everything(tmp_path / "local")
