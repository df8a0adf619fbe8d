"""Bulk work on Ray Data makes what it makes on one machine."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from service.bulk.__main__ import main
from tests.contract.harness import write_models
from tests.helpers.folders import write
from tests.helpers.live import ROOT, run
from tests.helpers.object_store import WEED
from tests.slow.cluster.space import own_namespace
from tests.unit.service.bulk.conftest import output_files, picture, service_environment

# Ray runs in namespaces of its own, so this is a program.
KILLED = """
from pathlib import Path
from tests.helpers.bulk_store import bulk, killed_workers, pictures, timed
from tests.helpers.object_store import Bucket
from tests.unit.service.bulk.conftest import output_files

folder = Path.cwd()
source, local = pictures(folder / "in", 400), folder / "out"
timed(bulk(source, local, "--shard", 32))
with Bucket(folder) as bucket:
    killed_workers(source, bucket, shard=32, kills=3, ray=True)
    assert bucket.download("out") == output_files(local)
"""


def on_ray(*command: object, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    line = [*own_namespace(), sys.executable, "-m", *command]
    return run(*line, cwd=folder, RAY_USAGE_STATS_ENABLED="0", **variables)


@pytest.mark.slow
def test_the_same_as_on_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_namespace()
    if find_spec("pandas") is None or find_spec("pyarrow") is None:
        pytest.skip("Ray Data is not installed, so nothing was run on it")
    variables = service_environment(write_models(tmp_path / "models"))
    write(tmp_path / "in", {f"{n}.png": picture(n) for n in range(9)} | {"5.png": b"bad"})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    options = ["--shard", "2", "--steps", "2"]
    output = tmp_path / "out"
    local = tmp_path / "local"
    assert main(["project", str(tmp_path / "in"), str(local), *options]) == 1
    shutil.copytree(local, output)
    (output / "manifest.jsonl").unlink()
    for folder in (output / "shards", *output.glob("0*")):
        shutil.rmtree(folder)
    command = ("service.bulk", "project", (tmp_path / "in").as_uri(), "out", *options)
    # the second time all is done
    first, second = (
        on_ray(*command, "--ray", "--actors", "2", folder=tmp_path, **variables) for _ in range(2)
    )
    assert (first.returncode, second.returncode) == (1, 1), first.stderr[-5000:]
    assert output_files(output) == output_files(local)
    assert "5.png: " in first.stderr
    assert "5.png: " not in second.stderr


@pytest.mark.slow
def test_actors_that_are_killed_make_what_one_machine_makes(tmp_path: Path) -> None:
    if find_spec("obstore") is None or WEED is None:
        pytest.skip("obstore and SeaweedFS are not installed, so nothing was run on them")
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "killed.py").write_text(KILLED)
    done = on_ray("killed", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-5000:]
