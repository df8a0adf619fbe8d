"""`ign site`: what it writes, and what it refuses. `tests/slow/browser/test_site.py` opens the
page.
"""

import base64
import hashlib
import json
import lzma
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner, Result

from ign import site
from ign.__main__ import main
from service.artifact.onnx_file import read_metadata
from tests.helpers.folders import contents
from tests.helpers.onnx_models import write_model

WASM = b"\0asm" + bytes(range(250))


def sri(method: str, data: bytes) -> str:
    return f"{method}-{base64.b64encode(hashlib.new(method, data).digest()).decode()}"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with archives that stand for those of the npm registry, and are also what it
    sends.
    """
    folder = tmp_path / "packages"
    folder.mkdir()
    (tmp_path / "wasm").write_bytes(WASM)
    pinned = {}
    published = {}
    for package, (_, members) in site.PACKAGES.items():
        archive = folder / f"{package.replace('@', '-')}.tgz"
        with tarfile.open(archive, mode="w:gz") as tar:
            for member in members:
                tar.add(tmp_path / "wasm", f"package/dist/{member}")
        pinned[package] = (sri("sha512", archive.read_bytes()), members)
        name = package.partition("@")[0]
        published[f"https://registry.npmjs.org/{name}/-/{archive.name}"] = archive

    def get(url: str, **_: object) -> httpx.Response:
        request = httpx.Request("GET", url)
        # A package that is not there stands for a registry that is out of reach.
        if not published[url].exists():
            return httpx.Response(503, request=request)
        return httpx.Response(200, content=published[url].read_bytes(), request=request)

    monkeypatch.setattr(site, "PACKAGES", pinned)
    monkeypatch.setattr(httpx, "get", get)
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_model(tmp_path / "models", "toy", scale=1.1)
    write_model(tmp_path / "models", "other", shape=(3, 8, 8), polarity="none", scale=1.1)
    return tmp_path / "models"


def make(out: Path, models: Path, *options: str) -> Result:
    return CliRunner().invoke(
        main, ["site", str(out), "--models", str(models), "--default-model", "toy", *options]
    )


def unpacked(out: Path, path: str, integrity: str, planes: bool, **sizes: int) -> bytes:
    """What the page makes of a file that `models.json` names."""
    packed = (out / path).read_bytes()
    assert integrity == sri("sha256", packed)
    data = np.frombuffer(lzma.decompress(packed), np.uint8)
    return (data.reshape(4, -1).T if planes else data).tobytes()[: sizes["bytes"]]


@pytest.mark.usefixtures("packages")
def test_the_site_has_all_it_names_and_names_no_other_host(tmp_path: Path, models: Path) -> None:
    out = tmp_path / "out"
    assert make(out, models).exit_code == 0
    files = contents(out)
    page = files["index.html"].decode()
    assert files.keys() >= set(re.findall(r'(?:src|href)="(page/[^"]+)"', page))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:;"
        in policy
    )
    assert not re.search(r"https?:|\*|unsafe-inline|'unsafe-eval'|frame-ancestors", policy)
    assert b"answered by a worker" in files["page/api.js"]
    (kept,) = re.findall(
        r"^const FILES = (.*);$", files["service-worker.js"].decode(), re.MULTILINE
    )
    needed = {"./", "models.json", "page/worker.js", "runtime/xz-decompress.min.js"}
    assert needed <= set(json.loads(kept)) <= {"./", *files}
    for name, data in files.items():
        if name.endswith((".js", ".html", ".css")) and not name.startswith("runtime"):
            text = data.decode().replace("http://www.w3.org/2000/svg", "")
            assert not re.search("https?:", text), name


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("bits", [0, 14])
def test_models_are_packed_and_nearly_as_they_were(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    out = tmp_path / "out"
    (models / "toy" / "1" / "golden.npz").write_bytes(b"damaged")
    for version in ("2", "10"):
        write_model(models, "toy", version, scale=1.2)
    monkeypatch.setattr(site, "_MANTISSA_BITS", bits)
    done = make(out, models)
    index = json.loads((out / "models.json").read_bytes())
    assert index["default"] == "toy/10"
    assert f"toy/1: left out: {index['failures'][0]['reason']}" in done.output
    assert unpacked(out, **index["runtime"]) == WASM
    for card in index["models"]:
        original = (models / card["name"] / card["version"] / "model.onnx").read_bytes()
        stored = unpacked(out, **card["file"])
        assert card["digest"] == f"sha256:{hashlib.sha256(original).hexdigest()}"
        # without a bit the golden rows would be missed: nothing is rounded
        assert (stored == original) == (bits == 0)
        assert (len(stored), read_metadata(stored)) == (len(original), read_metadata(original))


def test_an_earlier_site_is_replaced_and_other_files_stay(
    tmp_path: Path, models: Path, packages: Path
) -> None:
    out = tmp_path / "deep" / "out"
    make(out, models, "--runtime", str(packages))
    before = contents(out)
    (out / "CNAME").write_text("a.example")
    (models / "other").rename(tmp_path / "gone")
    make(out, models, "--runtime", str(packages))
    changed = {name for name, data in contents(out).items() if before.get(name) != data}
    # From the worker browsers know that there is something new.
    assert changed == {"CNAME", "models.json", "service-worker.js"}


def zero_rows(golden: Path) -> None:
    rows = dict(np.load(golden))
    np.savez(golden, **rows | {"y": np.zeros_like(rows["y"])})


@pytest.mark.parametrize(
    ("pattern", "damage", "options", "said"),
    [
        ("packages/*", Path.unlink, "", "npm pack onnxruntime-web@"),
        ("packages/*", lambda file: file.write_bytes(b"x"), "", "not what was published"),
        ("out", lambda out: (out / "index.html").write_text("x"), "", "holds another page"),
        ("out", Path.rmdir, "--models no", "no such directory"),
        (
            "models/*/1/model.onnx",
            lambda file: file.write_bytes(b"x"),
            "",
            "no model of it can be used",
        ),
        ("models/*/1/golden.npz", zero_rows, "", "does not give the rows of golden.npz"),
        (
            "models/*/1/model.onnx",
            lambda file: os.truncate(file, 100_000_001),
            "",
            "a page has room for 100",
        ),
        ("out", Path.rmdir, "--runtime .", "onnxruntime-web-1.30.0.tgz: No such file"),
    ],
)
@pytest.mark.usefixtures("packages")
def test_what_it_cannot_do_is_one_line_and_writes_nothing(
    tmp_path: Path,
    models: Path,
    pattern: str,
    damage: Callable[[Path], Any],
    options: str,
    said: str,
) -> None:
    (tmp_path / "out").mkdir()
    for path in tmp_path.glob(pattern):
        damage(path)
    before = set(tmp_path.rglob("*"))
    done = make(tmp_path / "out", models, *options.split())
    assert (done.exit_code, said in done.output) == (2, True)
    assert done.output.splitlines()[-1].startswith("ign site: ")
    assert set(tmp_path.rglob("*")) == before
