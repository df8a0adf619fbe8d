"""The tarball in node and in Chromium, against the real service with the models that ship."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ign_client import Client
from service import __version__
from tests.contract.harness import Service, serving, settings
from tests.helpers.live import ROOT, free_port, live_service
from tests.slow.browser.test_site import Host, build, compare, hosting
from tests.slow.js.conftest import CLIENT, run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HERE = Path(__file__).parent
COMPILER = json.loads((CLIENT / "package.json").read_text())["devDependencies"]["typescript"]
TYPES = {"strict": True, "exactOptionalPropertyTypes": True, "noUncheckedIndexedAccess": True, "noEmit": True}
MAP = json.dumps({"imports": {"@ign-service/client": "/node_modules/@ign-service/client/index.js"}})
PAGE = f'<!doctype html><title>A page of another origin</title><script type="importmap">{MAP}</script>'
CALL = "async ([name, ...values]) => (await import('/page.js'))[name](...values)"


def test_it_behaves_as_documented_against_a_fake_service(folder: Path, node: str | Path) -> None:
    shutil.copy(CLIENT / "test" / "client.test.js", folder / "client.test.mjs")
    done = run(node, "--test", "client.test.mjs", cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:]


def test_it_has_the_version_of_the_service() -> None:
    assert json.loads((CLIENT / "package.json").read_text())["version"] == __version__


def test_the_lock_has_hashes_and_no_other_registry() -> None:
    packages = json.loads((CLIENT / "package-lock.json").read_text())["packages"]
    assert all(package["integrity"].startswith("sha512-") for name, package in packages.items() if name)
    addresses = [package["resolved"] for package in packages.values() if "resolved" in package]
    assert all(address.startswith("https://registry.npmjs.org/") for address in addresses)


@pytest.mark.parametrize("module", ["nodenext", "esnext"])
def test_types_check(folder: Path, module: str) -> None:
    shutil.copy(HERE / "program.mts", folder)
    libraries = {"target": "es2022", "lib": ["es2022", "dom", "dom.asynciterable"], "types": []}
    how = {"module": module, "moduleResolution": "nodenext" if module == "nodenext" else "bundler"}
    options = {"compilerOptions": TYPES | libraries | how, "files": ["program.mts"]}
    (folder / "tsconfig.json").write_text(json.dumps(options))
    done = run(CLIENT / "node_modules" / ".bin" / "tsc", "--project", folder, cwd=folder)
    assert done.returncode == 0, done.stdout


def test_500_pictures_over_a_restart(folder: Path, node: str | Path) -> None:
    """The first service is told to stop after a hundred pictures, while the program goes on."""
    shutil.copy(HERE / "restart.mjs", folder)
    port = str(free_port())
    command = [node, "restart.mjs", f"http://127.0.0.1:{port}"]
    with live_service(IGN_PORT=port):
        program = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        assert program.stdout is not None
        lines = [program.stdout.readline() for _ in range(100)]
    with live_service(IGN_PORT=port) as url, Client(url) as client:
        made = [line.split() for line in [*lines, *program.stdout]]
        status = program.wait()
        some = {seed: client.generate(seed=seed)[0].bytes for seed in (0, 99, 100, 101, 250, 499)}
    program.stdout.close()
    assert status == 0
    assert sorted(int(seed) for seed, _, _ in made) == list(range(500)), "each seed is answered once"
    digests = {int(seed): digest for seed, _, digest in made}
    assert {seed: digests[seed] for seed in some} == {
        seed: hashlib.sha256(data).hexdigest() for seed, data in some.items()
    }


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[Host]:
    (folder / "index.html").write_text(PAGE)
    shutil.copy(HERE / "page.js", folder)
    with hosting(folder) as running:
        yield running


@pytest.fixture(scope="module")
def service(host: Host) -> Iterator[Service]:
    with serving(settings(ROOT / "models", default_model="mnist", cors_origins=(host.url,))) as running:
        yield running


@pytest.fixture
def page(browser: "Browser", host: Host) -> Iterator["Page"]:
    opened = browser.new_page()
    opened.goto(host.url)
    yield opened
    opened.close()


def test_it_runs_in_chromium(page: "Page", service: Service) -> None:
    found = page.evaluate(CALL, ["useService", service.url])
    with Client(service.url) as client:
        expected = [image.bytes for image in client.generate(n=40, seed=7)]
    assert [bytes(data) for data in found["images"]] == expected
    assert found["steps"] == [1, 5, "done"]
    assert found["file"] == ["image/webp", 7, 4, "mnist"]
    assert found["error"] == [True, "invalid_value", "n", True]


def test_the_same_calls_run_without_a_service(page: "Page", service: Service, tmp_path: Path) -> None:
    """A page of one origin runs the models of a site of another."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mnist").symlink_to(ROOT / "models" / "mnist")
    with hosting(build(tmp_path / "out", tmp_path / "models")) as site:
        local = page.evaluate(CALL, ["compareCalls", site.url, True])
        remote = page.evaluate(CALL, ["compareCalls", service.url, False])
        refused = page.evaluate(CALL, ["failures", site.url])
    assert local.keys() == remote.keys()
    for name in local:
        assert local[name]["members"] == remote[name]["members"], name
        compare(local[name]["images"], remote[name]["images"], share=0.97)  # several steps amplify differences
    assert refused == [
        ["not_supported", 501, "noise_scale"],
        ["not_supported", 501, ""],
        ["not_supported", 501, ""],
        ["invalid_value", 422, "n"],
        ["unknown_model", 404, ""],
        ["undecodable_image", 422, "images.1"],
        ["invalid_value", 422, "resize"],
        ["not_supported", 501, "points.1"],
    ]
