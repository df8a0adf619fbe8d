"""The tarball in node and in Chromium, against the real service with the models that ship."""

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ign_client import Client
from tests.contract.harness import serving, settings
from tests.helpers.live import MODELS, free_port, live_service, run
from tests.slow.browser.test_site import build, compare, hosting
from tests.slow.browser.visit import Browser, Page
from tests.slow.js.conftest import CLIENT

HERE = Path(__file__).parent
CALL = "async ([name, ...values]) => (await import('/page.js'))[name](...values)"


def test_it_behaves_as_documented_against_a_fake_service(folder: Path, node: str | Path) -> None:
    shutil.copy(CLIENT / "test" / "client.test.js", folder / "client.test.mjs")
    done = run(node, "--test", "client.test.mjs", cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("how", ["--module nodenext", "--module esnext --moduleResolution bundler"])
def test_types_check(folder: Path, how: str) -> None:
    shutil.copy(HERE / "program.mts", folder)
    command = (
        f"--strict --exactOptionalPropertyTypes --noEmit --target es2022 --lib "
        f"es2022,dom,dom.asynciterable {how}"
    )
    done = run(
        CLIENT / "node_modules" / ".bin" / "tsc", *command.split(), "program.mts", cwd=folder
    )
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
        some = {seed: client.generate(seed=seed)[0].bytes for seed in (0, 99, 100, 101, 250, 499)}
    program.stdout.close()
    assert program.wait() == 0
    assert sorted(int(seed) for seed, _, _ in made) == list(range(500)), (
        "each seed is answered once"
    )
    digests = {int(seed): digest for seed, _, digest in made}
    assert all(digests[seed] == hashlib.sha256(data).hexdigest() for seed, data in some.items())


@pytest.fixture
def page(folder: Path, browser: Browser) -> Iterator[tuple[Page, str]]:
    """A page that can import the package, and the URL of a service on another origin, which admits
    it.
    """
    for name in ("index.html", "page.js"):
        shutil.copy(HERE / name, folder)
    with (
        hosting(folder) as host,
        serving(settings(MODELS, default_model="mnist", cors_origins=(host.url,))) as service,
    ):
        opened = browser.new_page()
        opened.goto(host.url)
        yield opened, service.url
        opened.close()


def test_it_runs_in_chromium(page: tuple[Page, str]) -> None:
    tab, url = page
    found = tab.evaluate(CALL, ["useService", url])
    with Client(url) as client:
        expected = [image.bytes for image in client.generate(n=40, seed=7)]
    assert [bytes(data) for data in found["images"]] == expected
    assert found["facts"] == [1, 5, "done", "image/webp", 7, 4, "mnist", True, "invalid_value", "n"]


def test_the_same_calls_run_without_a_service(page: tuple[Page, str], tmp_path: Path) -> None:
    """A page of one origin runs the models of a site of another."""
    tab, url = page
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mnist").symlink_to(MODELS / "mnist")
    with hosting(build(tmp_path / "out", tmp_path / "models")) as site:
        local = tab.evaluate(CALL, ["compareCalls", site.url, True])
        remote = tab.evaluate(CALL, ["compareCalls", url, False])
        refused, expected = tab.evaluate(CALL, ["failures", site.url])
    assert local.keys() == remote.keys()
    for name in local:
        assert local[name]["members"] == remote[name]["members"], name
        # several steps amplify differences
        compare(local[name]["images"], remote[name]["images"], share=0.97)
    assert refused == expected
