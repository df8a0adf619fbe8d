"""The files of a release, and its wheels as a person meets them: in a new environment and a folder
that is no clone.
"""

import email
import json
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import httpx
import pytest

from service import __version__
from tests.docs.test_docs import blocks, commands
from tests.helpers.live import ROOT, SHIPPED, live_service, run
from tests.slow.conftest import REPOSITORY, make_release
from tests.structure.test_deployment import LOCKS, locked

OWN_PACKAGES = ("service", "model_export", "ign", "ign_client", "models")
pytest.importorskip("hatchling")


def succeed(folder: Path, *command: object, **variables: str) -> str:
    """What a command prints that ends well."""
    done = run(*command, cwd=folder, PYTHONPATH="", **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fail(folder: Path, *command: object) -> str:
    """The line of a command that does not do what it is asked."""
    done = run(*command, cwd=folder, PYTHONPATH="")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line


def install(python: str, dist: Path, folder: Path) -> Path:
    """The folder of the programs of a new environment with the service's wheel, its extra `cpu` and
    what they need.
    """
    made = run("env", python, "-m", "venv", "--without-pip", folder, PYTHONPATH="")
    if made.returncode:
        pytest.skip(f"{python} makes no environment: {made.stderr[-300:]}")
    done = run(
        *pip(folder / "bin"),
        "install",
        "--no-compile",  # before it is imported
        "--find-links",
        dist,
        "ign-service[cpu]",
    )
    if done.returncode:
        pytest.skip(f"pip found no packages: {done.stderr[-300:]}")
    return folder / "bin"


def pip(programs: Path) -> list[str | Path]:
    """The pip of this environment, for another one."""
    command = (sys.executable, "-I", "-m", "pip", "--disable-pip-version-check", "--quiet")
    return [*command, "--python", programs / "python"]


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(sys.executable, dist, tmp_path_factory.mktemp("installed") / "venv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with packages of the names that the wheels install."""
    for name in OWN_PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    return tmp_path


def test_it_serves_digits(installed: Path, folder: Path) -> None:
    options = ("--workers", "2", "--device", "cpu")
    with live_service(installed / "ign", "serve", *options, cwd=str(folder), PYTHONPATH="") as url:
        assert httpx.get(url, headers={"Accept": "text/html"}).status_code == 200
        succeed(folder, installed / "ign", "generate", "--base-url", url, "-n", "2", "-o", "out")
        assert "mnist" in succeed(folder, installed / "ign-client", "models", "--base-url", url)
    assert len(list((folder / "out").iterdir())) == 2


def test_the_other_commands(installed: Path, folder: Path) -> None:
    ign = installed / "ign"
    assert f"{SHIPPED['mnist']}: verified on cpu" in succeed(folder, ign, "serve", "--check")
    assert f"* {SHIPPED['mnist']}" in succeed(folder, ign, "models")
    succeed(folder, ign, "interpolate", "--local", "1", "2", "-o", "walk.webp")
    assert (folder / "walk.webp").read_bytes().startswith(b"RIFF")
    succeed(folder, ign, "bulk", "generate", "-n", "4", "bulk")
    train = ("train", "--preset", "tiny", "--data", "x", "--out", "y")
    assert "pip install 'ign-service[train,cpu]'" in fail(folder, ign, *train)


def test_without_onnxruntime_the_line_says_what_to_type(installed: Path, tmp_path: Path) -> None:
    """The command of the line works, although the package is on no index: it is installed."""
    succeed(tmp_path, *pip(installed), "uninstall", "--yes", "onnxruntime")
    assert "pip install 'ign-service[cpu]'" in fail(tmp_path, installed / "ign", "serve")
    succeed(tmp_path, *pip(installed), "install", "ign-service[cpu]")
    succeed(tmp_path, installed / "ign", "serve", "--check")


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_the_wheels_come_and_go_in_either_order(dist: Path, tmp_path: Path, version: str) -> None:
    programs = install(f"python{version}", dist, tmp_path / "venv")  # the client first
    remove = (*pip(programs), "uninstall", "--yes")
    generate = (programs / "ign", "generate", "--local", "-o")
    succeed(tmp_path, *generate, "after ign-service.png")
    succeed(tmp_path, *remove, "ign-client")
    assert "* mnist/" in succeed(tmp_path, programs / "ign", "models")
    line = fail(tmp_path, *generate, "x.png")
    assert f"`pip install ign-client=={__version__}`" in line
    succeed(tmp_path, *pip(programs), "install", "--no-deps", "--find-links", dist, "ign-client")
    succeed(tmp_path, *generate, "after ign-client.png")
    succeed(tmp_path, *remove, "ign-service")
    said = succeed(tmp_path, programs / "ign-client", "--version")
    assert said == f"ign-client {__version__}\n"


def test_a_second_run_writes_the_same_bytes_which_the_page_says_how_to_check(
    dist: Path, tmp_path: Path
) -> None:
    checks = list(commands(blocks((ROOT / "docs" / "deployment.md").read_text())[0]))[:2]
    cosign = shutil.which("cosign")
    key = {"COSIGN_PASSWORD": ""}
    if cosign:
        succeed(tmp_path, cosign, "generate-key-pair", COSIGN_PASSWORD="")
        key["COSIGN_KEY"] = str(tmp_path / "cosign.key")
    again = make_release(tmp_path, **key)
    assert (again / "SHA256SUMS").read_bytes() == (dist / "SHA256SUMS").read_bytes()
    assert len((dist / "SHA256SUMS").read_text().splitlines()) == len(list(dist.iterdir())) - 1
    for command in checks[: 2 if cosign else 1]:
        succeed(again, "sh", "-c", command.replace("cosign.pub", f"{tmp_path}/cosign.pub"))
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
    with zipfile.ZipFile(dist / f"ocrmypdf_ign-{__version__}-py3-none-any.whl") as plugin:
        assert "ocrmypdf_ign.py" in plugin.namelist()
        metadata = plugin.read(f"ocrmypdf_ign-{__version__}.dist-info/METADATA").decode()
    assert f"Requires-Dist: ign-service[cpu]=={__version__}\n" in metadata
    assert "### Added" in (dist / f"ign-service-{__version__}-notes.md").read_text()
    for chart in (ROOT / "deploy").glob("chart/*/Chart.yaml"):
        with tarfile.open(dist / f"{chart.parent.name}-{__version__}.tgz") as packed:
            assert packed.extractfile(f"{chart.parent.name}/Chart.yaml")
            assert not any(member.issym() for member in packed)
