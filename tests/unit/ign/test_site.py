"""`ign site`: what it writes, and what it refuses. `tests/slow/browser/test_site.py` opens the page."""

import base64
import hashlib
import io
import json
import lzma
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner, Result

from ign import site
from service.artifact.onnx_file import read_metadata
from tests.helpers.onnx_models import write_model

WASM = b"\0asm" + bytes(range(250))


def archive(members: Sequence[str]) -> bytes:
    """An archive of a package, with other content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in members:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(WASM)
            tar.addfile(member, io.BytesIO(WASM))
    return buffer.getvalue()


def sri(method: str, data: bytes) -> str:
    return f"{method}-{base64.b64encode(hashlib.new(method, data).digest()).decode()}"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Archives by name, which stand for those of the npm registry."""
    archives = {name: archive(members) for name, (_, members) in site.PACKAGES.items()}
    packages = {name: (sri("sha512", archives[name]), members) for name, (_, members) in site.PACKAGES.items()}

    def get(url: str, **_: object) -> httpx.Response:
        base, name = url.split("/-/")
        if name not in archives:
            raise httpx.ConnectError("no network")
        assert name.startswith(base.removeprefix("https://registry.npmjs.org/"))
        return httpx.Response(200, content=archives[name], request=httpx.Request("GET", url))

    monkeypatch.setattr(site, "PACKAGES", packages)
    monkeypatch.setattr(httpx, "get", get)
    return archives


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_model(tmp_path / "models", "toy", scale=1.1, title="Toys")
    write_model(tmp_path / "models", "other", shape=(3, 8, 8), polarity="none", scale=1.1)
    return tmp_path / "models"


def make(out: Path, models: Path, *options: str) -> Result:
    return CliRunner().invoke(site.site, [str(out), "--models", str(models), "--default-model", "toy", *options])


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def unpacked(out: Path, path: str, integrity: str, planes: bool, **sizes: int) -> bytes:
    """What the page makes of a file that `models.json` names."""
    packed = (out / path).read_bytes()
    assert integrity == sri("sha256", packed)
    data = np.frombuffer(lzma.decompress(packed), np.uint8)
    return (data.reshape(4, -1).T if planes else data).tobytes()[: sizes["bytes"]]


@pytest.mark.usefixtures("registry")
def test_the_site_has_all_it_names(tmp_path: Path, models: Path) -> None:
    out = tmp_path / "out"
    done = make(out, models)
    assert done.exit_code == 0, done.output
    files = content(out)
    page = files["index.html"].decode()
    for name in re.findall(r'(?:src|href)="(page/[^"]+)"', page):
        assert name in files
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:;" in policy
    assert not re.search(r"https?:|\*|unsafe-inline|'unsafe-eval'|frame-ancestors", policy)
    assert b"answered by a worker" in files["page/api.js"]
    worker = files["service-worker.js"].decode()
    (kept,) = re.findall(r"^const FILES = (.*);$", worker, re.MULTILINE)
    assert {"./", "models.json", "page/app.js", "page/worker.js", "runtime/xz-decompress.min.js"} <= set(
        json.loads(kept)
    )
    assert all(name == "./" or name in files for name in json.loads(kept))
    for name in (
        name for name in files if name.endswith((".js", ".html", ".css")) and name.startswith(("page", "index"))
    ):
        text = files[name].decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search("https?:", text), name  # no other host


@pytest.mark.usefixtures("registry")
def test_models_are_packed_and_nearly_as_they_were(tmp_path: Path, models: Path) -> None:
    out = tmp_path / "out"
    (models / "toy" / "1" / "golden.npz").write_bytes(b"damaged")
    write_model(models, "toy", "2", scale=1.2)
    done = make(out, models)
    index = json.loads((out / "models.json").read_bytes())
    assert index["default"] == "toy/2"
    assert [(card["name"], card["version"]) for card in index["models"]] == [("other", "1"), ("toy", "2")]
    (failure,) = index["failures"]
    assert failure["name"] == "toy"
    assert f"toy/1: left out: {failure['reason']}" in done.output
    assert unpacked(out, **index["runtime"]) == WASM
    for card in index["models"]:
        original = (models / card["name"] / card["version"] / "model.onnx").read_bytes()
        stored = unpacked(out, **card["file"])
        assert card["digest"] == f"sha256:{hashlib.sha256(original).hexdigest()}"
        assert stored != original  # the weights are rounded
        assert len(stored) == len(original)
        assert read_metadata(stored) == read_metadata(original)


@pytest.mark.usefixtures("registry")
def test_weights_that_cannot_be_rounded_stay(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "_MANTISSA_BITS", 0)
    make(tmp_path / "out", models)
    for card in json.loads((tmp_path / "out" / "models.json").read_bytes())["models"]:
        original = (models / card["name"] / card["version"] / "model.onnx").read_bytes()
        assert unpacked(tmp_path / "out", **card["file"]) == original


def test_an_earlier_site_is_replaced_and_other_files_stay(
    tmp_path: Path, models: Path, registry: dict[str, bytes]
) -> None:
    out, packages = tmp_path / "deep" / "out", tmp_path / "packages"
    packages.mkdir()
    for file, data in registry.items():
        (packages / file).write_bytes(data)
    registry.clear()  # there is no network
    assert make(out, models, "--runtime", str(packages)).exit_code == 0
    before = content(out)
    (out / "CNAME").write_text("a.example")
    (models / "other").rename(tmp_path / "gone")
    assert make(out, models, "--runtime", str(packages)).exit_code == 0
    after = content(out)
    assert before.keys() - after.keys() == {"models/other/1/model.onnx.xz"}
    assert after["CNAME"] == b"a.example"
    assert before["service-worker.js"] != after["service-worker.js"]  # so that browsers load the new files


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("network", "npm pack onnxruntime-web@"),
        ("archive", "not what was published"),
        ("folder", "holds other files"),
        ("models", "no such directory"),
        ("all damaged", "no model of it can be used"),
        ("too large", "a page has room for"),
        ("runtime", "onnxruntime-web-1.30.0.tgz: No such file"),
    ],
)
def test_what_it_cannot_do_is_one_line_and_writes_nothing(
    tmp_path: Path, models: Path, registry: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, wrong: str, said: str
) -> None:
    out, options = tmp_path / "out", list[str]()
    if wrong == "network":
        registry.clear()
    elif wrong == "archive":
        registry.update(dict.fromkeys(registry, b"another"))
    elif wrong == "folder":
        out.mkdir()
        (out / "index.html").write_text("mine")
    elif wrong == "models":
        models = tmp_path / "nothing"
    elif wrong == "all damaged":
        for file in models.rglob("model.onnx"):
            file.write_bytes(file.read_bytes()[:100])
    elif wrong == "too large":
        monkeypatch.setattr(site, "_MAX_MODEL_BYTES", 10)
    else:
        options = ["--runtime", str(tmp_path)]
    before = content(tmp_path)
    done = make(out, models, *options)
    assert done.exit_code == 1
    assert said in done.output
    assert done.output.splitlines()[-1].startswith("Error: ")
    assert content(tmp_path) == before
