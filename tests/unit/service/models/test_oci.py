"""Models in an OCI registry: what is pushed is what serves, and no byte is used that does not match its digest."""

import hashlib
import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from service.domain.errors import StartupError
from service.models.oci import Image
from service.models.store import ModelStore
from tests.helpers.onnx_models import write_model

TOKEN, LOGIN = "Bearer granted", "Basic dXNlcjpwYXNz"
TYPE = "application/vnd.oci.image.manifest.v1+json"


class Registry(ThreadingHTTPServer):
    """A registry in memory. Callers need a token, which its realm gives to `user` with the password `pass`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.failures, self.asked = 0, list[str]()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def image(self, reference: str = ":latest") -> str:
        return f"oci://{self.host}/team/models{reference}"

    def add_layers(self, *layers: bytes, tag: str = "latest") -> str:
        """Tag an image of these layers, as a build with a Dockerfile makes it."""
        digests = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
        self.blobs |= dict(zip(digests, layers, strict=True))
        return self.add_manifest({"layers": [{"digest": digest} for digest in digests]}, tag)

    def add_manifest(self, manifest: Any, tag: str) -> str:
        data = json.dumps(manifest).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.manifests |= {tag: data, digest: data}
        return digest


class Handler(BaseHTTPRequestHandler):
    server: Registry
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding"):
            raise AssertionError("registries want a length")
        server, url = self.server, urlsplit(self.path)
        server.asked.append(f"{self.command} {url.path.removeprefix('/v2/team/models/')}")
        if url.path == "/token":
            is_known = self.headers.get("Authorization") == LOGIN
            self.answer(200 if is_known else 401, b'{"token": "granted"}' if is_known else b"{}")
        elif self.headers.get("Authorization") != TOKEN:
            self.answer(401, WWW_Authenticate=f'Bearer realm="http://{server.host}/token",service="test"')
        elif server.failures:
            server.failures -= 1
            self.answer(503, b'{"errors": [{"code": "UNAVAILABLE", "message": "later"}]}')
        else:
            self.serve(url.path.removeprefix("/v2/team/models/"), parse_qs(url.query), body)

    do_HEAD = do_POST = do_PUT = do_GET

    def serve(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        kind, _, name = path.partition("/")
        held = self.server.blobs if kind == "blobs" else self.server.manifests
        if self.command == "POST":
            self.answer(202, Location="/v2/team/models/blobs/uploads/1?state=x")
        elif self.command == "PUT":
            digest = "sha256:" + hashlib.sha256(body).hexdigest()
            assert kind == "manifests" or query == {"state": ["x"], "digest": [digest]}
            held |= {digest: body} | ({name: body} if kind == "manifests" else {})
            self.answer(201)
        elif name in held:
            self.answer(200, held[name], Content_Type=TYPE)
        else:
            self.answer(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "unknown"}]}')


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    with Registry() as registry:
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": LOGIN[6:]}}}))
        yield registry
        registry.shutdown()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for version in "12":
        write_model(tmp_path / "models", version=version)
    return tmp_path / "models"


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def layer(files: dict[str, bytes], mode: Any = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_what_is_pushed_is_copied_and_only_new_layers_are_sent(
    registry: Registry, models: Path, tmp_path: Path
) -> None:
    image = Image(registry.image(":1.0"))
    digest = image.push(models, ["toy/1", "toy/2"])
    assert image.push(models, ["toy/1", "toy/2"]) == digest == image.digest()
    store = ModelStore(registry.image(f":1.0@{digest}"), tmp_path / "copy")
    assert store.refresh() == {}
    assert contents(tmp_path / "copy") == contents(models)
    registry.asked.clear()
    assert store.refresh() == {}
    assert registry.asked[-1] == f"GET manifests/{digest}"
    assert not [line for line in registry.asked if "blobs" in line]


def test_a_tag_that_moves_brings_the_new_versions(registry: Registry, models: Path, tmp_path: Path) -> None:
    Image(registry.image()).push(models, ["toy/1"])
    store = ModelStore(registry.image(), tmp_path / "copy")
    store.refresh()
    (tmp_path / "copy" / "toy" / "1" / "golden.npz").unlink()  # the same layer again
    Image(registry.image()).push(models, ["toy/1", "toy/2"])
    assert store.refresh() == {}
    assert contents(tmp_path / "copy") == contents(models)
    Image(registry.image()).push(models, ["toy/2"])
    assert store.refresh() == {}
    assert {*contents(tmp_path / "copy")} == {"toy/2/model.onnx", "toy/2/golden.npz"}


def test_an_image_of_a_dockerfile_serves_too(registry: Registry, tmp_path: Path) -> None:
    files = {"./models/toy/1/model.onnx": b"old", "etc/passwd": b"x", "models/../../model.onnx": b"out"}
    over = {"models/toy/1/model.onnx": b"new", "models/toy/1/README.md": b"x"}
    inner = registry.add_layers(layer(files), layer(over, "w"), tag="amd64")
    attestation = {"digest": "sha256:" + 64 * "0", "platform": {"os": "unknown"}}
    registry.add_manifest({"manifests": [attestation, {"digest": inner, "platform": {"os": "linux"}}]}, "latest")
    assert ModelStore(registry.image(), tmp_path / "copy").refresh() == {}
    assert contents(tmp_path / "copy") == {"toy/1/model.onnx": b"new"}


def test_a_layer_of_which_a_folder_was_not_copied_is_read_again(registry: Registry, tmp_path: Path) -> None:
    registry.add_layers(layer({f"models/toy/{version}/model.onnx": b"x" for version in "12"}))
    store, blocked = ModelStore(registry.image(), tmp_path / "copy"), tmp_path / "copy" / "toy" / "2"
    blocked.parent.mkdir(parents=True)
    blocked.write_bytes(b"a file where the folder belongs")
    assert {*store.refresh()} == {"toy/2"}
    blocked.unlink()
    assert store.refresh() == {}
    assert contents(tmp_path / "copy") == {"toy/1/model.onnx": b"x", "toy/2/model.onnx": b"x"}


def test_bytes_that_do_not_match_their_digest_are_refused(registry: Registry, models: Path, tmp_path: Path) -> None:
    digest = Image(registry.image()).push(models, ["toy/1"])
    store = ModelStore(registry.image(f"@{digest}"), tmp_path / "copy")
    held = registry.blobs.copy()
    registry.blobs |= {name: content.replace(b"toy", b"tax") for name, content in held.items()}
    with pytest.raises(
        StartupError, match=f"oci://.*layer {re.escape(next(iter(held)))}: the registry sent other bytes"
    ):
        store.refresh()
    assert contents(tmp_path / "copy") == {}
    registry.blobs = held
    registry.manifests[digest] += b" "
    with pytest.raises(StartupError, match=f"{digest}: the registry sent other bytes"):
        store.refresh()


def test_a_registry_that_fails_is_asked_again_and_copies_serve_meanwhile(
    registry: Registry, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.models.oci._WAITS_S", (0.0, 0.0))
    Image(registry.image()).push(models, ["toy/1"])
    store = ModelStore(registry.image(), tmp_path / "copy")
    registry.failures = 2
    assert store.refresh() == {}
    registry.failures = 100
    assert store.refresh(may_fail=True) == {}
    with pytest.raises(StartupError, match=r"manifests/latest: 503 UNAVAILABLE: later"):
        store.refresh()


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ([], "is no manifest"),
        ({"layers": 3}, "is no manifest"),
        ({"layers": [{}]}, "is no manifest"),
        ({"manifests": [{"platform": {"os": "linux"}}]}, "is no manifest"),
        ({"layers": []}, "holds no model such as"),
        ({"layers": [{"digest": "sha256:" + hashlib.sha256(b"no tar").hexdigest()}]}, "is no tar file"),
        ({"layers": [{"digest": "sha256:" + 64 * "1"}]}, "404 MANIFEST_UNKNOWN"),
    ],
)
def test_an_image_without_models_is_named(registry: Registry, tmp_path: Path, manifest: Any, says: str) -> None:
    registry.blobs["sha256:" + hashlib.sha256(b"no tar").hexdigest()] = b"no tar"
    registry.add_manifest(manifest, "latest")
    with pytest.raises(StartupError, match=f"IGN_MODEL_DIR=oci://.*{says}"):
        ModelStore(registry.image(), tmp_path / "copy").refresh()


def test_wrong_credentials_and_urls_are_named(registry: Registry, models: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auths": {}}')
    with pytest.raises(StartupError, match=r"manifests/latest: 401 "):
        ModelStore(registry.image(), tmp_path / "copy").refresh()
    for url in ("oci://host", "oci://host/Name", "oci://host/name@sha256:1", "oci://user@host/name"):
        with pytest.raises(StartupError, match=f"{url}: must be oci://registry/repository"):
            Image(url)
    with pytest.raises(StartupError, match="push to a tag"):
        Image(f"oci://host/name@sha256:{64 * '0'}").push(models, ["toy/1"])
    with pytest.raises(StartupError, match=r"127\.0\.0\.1:1: .*refused"):
        Image("oci://127.0.0.1:1/name").digest()
