"""The tarball in node and in Chromium, against the real service with the models that ship."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ign_client import Client
from service import __version__
from tests.contract.harness import serving, settings
from tests.helpers.live import ROOT, free_port, live_service
from tests.slow.browser.test_site import hosting
from tests.slow.js.conftest import CLIENT, run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
COMPILER = json.loads((CLIENT / "package.json").read_text())["devDependencies"]["typescript"]
TYPES = {"strict": True, "exactOptionalPropertyTypes": True, "noUncheckedIndexedAccess": True, "noEmit": True}
PAGE = """async (url) => {
  const { Client, IgnError } = await import("/node_modules/@ign-service/client/index.js");
  const client = new Client(url);
  const { images } = await client.generate({ n: 40, seed: 7, score: true });
  const canvas = Object.assign(document.createElement("canvas"), { width: 28, height: 28 });
  canvas.getContext("2d").drawImage(await createImageBitmap(images[0].blob), 0, 0);
  const drawing = await new Promise((resolve) => canvas.toBlob(resolve));
  const [steps, options] = [[], { steps: 5, record: [1, 5] }];
  for await (const event of client.streamProject(drawing, options)) steps.push(event.step ?? event.type);
  const file = await client.generateAs("webp", { n: 4, seed: 7 });
  const error = await client.generate({ n: 0 }).catch((error) => error);
  return {
    images: images.map(({ bytes }) => Array.from(bytes)),
    steps, file: [file.blob.type, file.seed, file.steps.length, file.model.name],
    error: [error instanceof IgnError, error.code, error.errors[0].field, error.requestId !== null],
  };
}"""


def test_it_behaves_as_documented_against_a_fake_service(folder: Path) -> None:
    shutil.copy(CLIENT / "test" / "client.test.js", folder / "client.test.mjs")
    done = run("node", "--test", "client.test.mjs", cwd=folder)
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


def test_500_pictures_over_a_restart(folder: Path) -> None:
    """The first service is told to stop after a hundred pictures, while the program goes on."""
    shutil.copy(HERE / "restart.mjs", folder)
    port = str(free_port())
    command = ["node", "restart.mjs", f"http://127.0.0.1:{port}"]
    with live_service(IGN_PORT=port):
        program = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert program.stdout is not None
        lines = [program.stdout.readline() for _ in range(100)]
    with live_service(IGN_PORT=port) as url, Client(url) as client:
        rest, complaints = program.communicate(timeout=300)
        made = [line.split() for line in [*lines, *rest.splitlines()]]
        some = {seed: client.generate(seed=seed)[0].bytes for seed in (0, 99, 100, 101, 250, 499)}
    assert program.returncode == 0, complaints
    assert sorted(int(seed) for seed, _, _ in made) == list(range(500)), "each seed is answered once"
    digests = {int(seed): digest for seed, _, digest in made}
    assert {seed: digests[seed] for seed in some} == {
        seed: hashlib.sha256(data).hexdigest() for seed, data in some.items()
    }


def test_it_runs_in_chromium(folder: Path, browser: "Browser") -> None:
    (folder / "index.html").write_text("<!doctype html><title>A page of another origin</title>")
    with hosting(folder) as host:
        configured = settings(ROOT / "models", default_model="mnist", cors_origins=(host.url,))
        with serving(configured) as service, Client(service.url) as client:
            page = browser.new_page()
            page.goto(host.url)
            found = page.evaluate(PAGE, service.url)
            expected = [image.bytes for image in client.generate(n=40, seed=7)]
            page.close()
    assert [bytes(data) for data in found["images"]] == expected
    assert found["steps"] == [1, 5, "done"]
    assert found["file"] == ["image/webp", 7, 4, "mnist"]
    assert found["error"] == [True, "invalid_value", "n", True]
