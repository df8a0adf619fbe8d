"""The files of a release, and its wheels as a person meets them: in a new environment and a folder
that is no clone.
"""

import email
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import httpx
import pytest

from service import __version__
from tests.docs.test_docs import blocks, commands, runner_of
from tests.helpers.live import ROOT, SHIPPED, environment, live_service
from tests.slow.conftest import REPOSITORY, make_release
from tests.structure.test_deployment import LOCKS, locked

BUILD_S = 600
START_S = 120
OWN_PAGES = ("http-api", "images-by-url", "operations", "sdk", "tutorial-call-from-a-service")
OWN_PACKAGES = ("service", "model_export", "ign", "ign_client", "models")
pytest.importorskip("hatchling")


def install(python: str | Path, dist: Path, folder: Path) -> Path:
    """The folder of the programs of a new environment with the service's wheel, its extra `cpu` and
    what they need.
    """
    made = run(["env", python, "-m", "venv", folder], folder.parent, BUILD_S)
    if made.returncode:
        pytest.skip(f"{python} makes no environment: {made.stderr[-300:]}")
    done = run(
        [*pip(folder / "bin"), "install", "--find-links", dist, "ign-service[cpu]"], folder, BUILD_S
    )
    if done.returncode:
        pytest.skip(f"pip found no packages: {done.stderr[-300:]}")
    return folder / "bin"


def pip(programs: Path) -> list[str | Path]:
    return [programs / "python", "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(sys.executable, dist, tmp_path_factory.mktemp("installed") / "venv")


@pytest.fixture(params=["empty folder", "folder with packages of the same names"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param != "empty folder":
        for name in OWN_PACKAGES:
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    return tmp_path


def run(
    command: Sequence[str | Path], folder: Path, timeout: float = START_S, **variables: str
) -> "subprocess.CompletedProcess[str]":
    env = environment(PYTHONPATH="", **variables)
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


def digits(url: str) -> bytes:
    response = httpx.post(
        f"{url}/generate", json={"seed": 7, "n": 16}, headers={"Accept": "image/png"}, timeout=60
    )
    assert response.status_code == 200
    return response.content


@pytest.mark.parametrize("options", [(), ("--workers", "2", "--device", "cpu")])
def test_it_serves_digits(installed: Path, folder: Path, options: tuple[str, ...]) -> None:
    with live_service(
        installed / "ign", "serve", "--port", "0", *options, cwd=str(folder), PYTHONPATH=""
    ) as url:
        assert digits(url).startswith(b"\x89PNG")
        assert httpx.get(url, headers={"Accept": "text/html"}).status_code == 200
        done = run(
            [installed / "ign", "generate", "--base-url", url, "-n", "2", "-o", "out"], folder
        )
        assert done.returncode == 0, done.stderr
        done = run([installed / "ign-client", "models", "--base-url", url], folder)
        assert "mnist" in done.stdout
    assert len(list((folder / "out").iterdir())) == 2


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in OWN_PAGES)])
def test_the_code_of_the_docs_runs(installed: Path, tmp_path: Path, page: str) -> None:
    """In an environment that holds the wheel and nothing else."""
    with live_service(
        installed / "ign", "serve", "--port", "0", cwd=str(tmp_path), PYTHONPATH=""
    ) as url:
        digits(url)  # metrics of a page need a request
        runner = runner_of(ROOT / page, tmp_path, url, installed)
        runner.run(runner.page)


def test_the_other_commands(installed: Path, folder: Path) -> None:
    done = run([installed / "ign", "serve", "--check"], folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{SHIPPED['mnist']}: verified on cpu" in done.stdout
    assert f"* {SHIPPED['mnist']}" in run([installed / "ign", "models"], folder).stdout
    done = run([installed / "ign", "interpolate", "--local", "1", "2", "-o", "walk.webp"], folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "walk.webp").read_bytes().startswith(b"RIFF")
    done = run([installed / "ign", "bulk", "generate", "-n", "4", "bulk"], folder)
    assert done.returncode == 0, done.stderr
    done = run(
        [installed / "ign", "train", "--preset", "tiny", "--data", "x", "--out", "y"], folder
    )
    assert done.returncode == 2
    assert "pip install 'ign-service[train,cpu]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_onnxruntime_the_line_says_what_to_type(installed: Path, tmp_path: Path) -> None:
    """The command of the line works, although the package is on no index: it is installed."""
    assert run([*pip(installed), "uninstall", "--yes", "onnxruntime"], tmp_path).returncode == 0
    try:
        done = run([installed / "ign", "serve"], tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "pip install 'ign-service[cpu]'" in line
    finally:
        done = run([*pip(installed), "install", "ign-service[cpu]"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert run([installed / "ign", "serve", "--check"], tmp_path).returncode == 0


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_wheels_come_and_go_in_either_order(dist: Path, tmp_path: Path, version: str) -> None:
    programs = install(f"python{version}", dist, tmp_path / "venv")
    for order in permutations(("ign-service", "ign-client")):
        assert run([*pip(programs), "uninstall", "--yes", *order], tmp_path).returncode == 0
        for name in order:
            assert (
                run(
                    [*pip(programs), "install", "--no-deps", "--find-links", dist, name], tmp_path
                ).returncode
                == 0
            )
        done = run(
            [programs / "ign", "generate", "--local", "-o", f"after {order[1]}.png"], tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert run([*pip(programs), "uninstall", "--yes", order[0]], tmp_path).returncode == 0
        if order[0] == "ign-service":
            assert (
                run([programs / "ign-client", "--version"], tmp_path).stdout
                == f"ign-client {__version__}\n"
            )
            continue
        assert "* mnist/" in run([programs / "ign", "models"], tmp_path).stdout
        done = run([programs / "ign", "generate", "--local", "-o", "x.png"], tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert f"`pip install ign-client=={__version__}`" in done.stderr


def test_a_second_run_writes_the_same_bytes_which_the_page_says_how_to_check(
    dist: Path, tmp_path: Path
) -> None:
    checks = list(commands(blocks((ROOT / "docs" / "releases.md").read_text())[0]))[:2]
    cosign = shutil.which("cosign")
    key = {"COSIGN_PASSWORD": ""}
    if cosign:
        assert run([cosign, "generate-key-pair"], tmp_path, COSIGN_PASSWORD="").returncode == 0
        key["COSIGN_KEY"] = str(tmp_path / "cosign.key")
    again = make_release(tmp_path, **key)
    assert (again / "SHA256SUMS").read_bytes() == (dist / "SHA256SUMS").read_bytes()
    assert len((dist / "SHA256SUMS").read_text().splitlines()) == len(list(dist.iterdir())) - 1
    for command in checks[: 2 if cosign else 1]:
        done = run(["sh", "-c", command.replace("cosign.pub", str(tmp_path / "cosign.pub"))], again)
        assert done.returncode == 0, done.stderr
    if not cosign:
        pytest.skip("cosign is not installed, so nothing was signed")


@pytest.mark.parametrize("package", ["ign_service", "ign_client"])
def test_a_wheel_is_fit_for_an_index(dist: Path, package: str) -> None:
    """Nothing in it leads into the clone: links go to the repository at the tag, where their file
    is.
    """
    with zipfile.ZipFile(dist / f"{package}-{__version__}-py3-none-any.whl") as wheel:
        metadata = email.message_from_bytes(
            wheel.read(f"{package}-{__version__}.dist-info/METADATA")
        )
    links = re.findall(r"\]\(([^)\s]+)\)", str(metadata.get_payload()))
    assert links
    for link in links:
        own = re.fullmatch(f"{REPOSITORY}/(?:blob|raw)/v{__version__}/([^#]+)(?:#.*)?", link)
        assert link.startswith("https://") if own is None else (ROOT / own[1]).exists(), link
    assert f"Source, {REPOSITORY}" in metadata.get_all("Project-URL", [])
    needs = metadata.get_all("Requires-Dist", [])
    assert not any("@" in need for need in needs)
    assert (f"ign-client=={__version__}" in needs) is (package == "ign_service")


def test_the_other_files_of_a_release(dist: Path) -> None:
    for lock in LOCKS.keys() - {"ci", "ci-ray"}:
        bill = json.loads((dist / f"ign-service-{__version__}-{lock}.cdx.json").read_text())
        assert bill["metadata"]["component"]["version"] == __version__
        pins = {name: version for name, (version, _) in locked(lock).items()}
        assert {part["name"]: part["version"] for part in bill["components"]} == pins
    assert "### Added" in (dist / f"ign-service-{__version__}-notes.md").read_text()
    for chart in (ROOT / "deploy").glob("chart/*/Chart.yaml"):
        with tarfile.open(dist / f"{chart.parent.name}-{__version__}.tgz") as packed:
            assert packed.extractfile(f"{chart.parent.name}/Chart.yaml")
            assert not any(member.issym() for member in packed)
