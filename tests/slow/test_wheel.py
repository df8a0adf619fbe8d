"""The wheel as a person meets it: installed into a new environment, started in a folder that is not a clone."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from tests.docs.test_docs import runner_of
from tests.helpers.live import ROOT, environment, live_service

BUILD_S, START_S = 600, 120
OWN_PAGES = ("http-api", "images-by-url", "operations", "sdk", "tutorial-call-from-a-service")
OWN_PACKAGES = ("service", "model_export", "ign", "ign_client", "models")
pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=BUILD_S, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of an environment with the wheel and its extra `cpu`."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], timeout=BUILD_S, check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    done = subprocess.run([*pip, f"{wheel}[cpu]"], capture_output=True, text=True, timeout=BUILD_S, check=False)
    if done.returncode:
        pytest.skip(f"pip found no packages: {done.stderr[-300:]}")
    return folder / "bin"


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
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def digits(url: str) -> bytes:
    response = httpx.post(f"{url}/generate", json={"seed": 7, "n": 16}, headers={"Accept": "image/png"}, timeout=60)
    assert response.status_code == 200
    return response.content


@pytest.mark.parametrize("options", [(), ("--workers", "2", "--device", "cpu")])
def test_it_serves_digits(installed: Path, folder: Path, options: tuple[str, ...]) -> None:
    with live_service(installed / "ign", "serve", "--port", "0", *options, cwd=str(folder), PYTHONPATH="") as url:
        assert digits(url).startswith(b"\x89PNG")
        assert httpx.get(url, headers={"Accept": "text/html"}).status_code == 200
        done = run([installed / "ign", "generate", "--base-url", url, "-n", "2", "-o", "out"], folder)
        assert done.returncode == 0, done.stderr
        done = run([installed / "ign-client", "models", "--base-url", url], folder)
        assert "mnist" in done.stdout
    assert len(list((folder / "out").iterdir())) == 2


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in OWN_PAGES)])
def test_the_code_of_the_docs_runs(installed: Path, tmp_path: Path, page: str) -> None:
    """In an environment that holds the wheel and nothing else."""
    with live_service(installed / "ign", "serve", "--port", "0", cwd=str(tmp_path), PYTHONPATH="") as url:
        digits(url)  # metrics of a page need a request
        runner = runner_of(ROOT / page, tmp_path, url, installed)
        runner.run(runner.page)


def test_python_m_with_a_safe_path(installed: Path, folder: Path) -> None:
    """`python -m` looks into the working directory first, unless -P is given."""
    with live_service(installed / "python", "-P", "-m", "service", cwd=str(folder), PYTHONPATH="") as url:
        assert digits(url).startswith(b"\x89PNG")


def test_the_other_commands(installed: Path, folder: Path) -> None:
    done = run([installed / "ign", "serve", "--check"], folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mnist/5: verified on cpu" in done.stdout
    assert "* mnist/5" in run([installed / "ign", "models"], folder).stdout
    done = run([installed / "ign", "interpolate", "--local", "1", "2", "-o", "walk.webp"], folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "walk.webp").read_bytes().startswith(b"RIFF")
    done = run([installed / "ign", "bulk", "generate", "-n", "4", "bulk"], folder)
    assert done.returncode == 0, done.stderr
    done = run([installed / "ign", "train", "--preset", "tiny", "--data", "x", "--out", "y"], folder)
    assert done.returncode == 2
    assert "pip install 'ign-service[train,cpu]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_onnxruntime_the_line_says_what_to_type(installed: Path, wheel: Path, tmp_path: Path) -> None:
    """The command of the line works, although the package is on no index: it is installed."""
    pip = [str(installed / "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
    assert run([*pip, "uninstall", "--yes", "onnxruntime"], tmp_path).returncode == 0
    try:
        done = run([installed / "ign", "serve"], tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "pip install 'ign-service[cpu]'" in line
    finally:
        done = run([*pip, "install", "ign-service[cpu]"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert run([installed / "ign", "serve", "--check"], tmp_path).returncode == 0
