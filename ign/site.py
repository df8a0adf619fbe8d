"""`ign site`: the page “Make it real” as a folder of static files, which runs the models in the browser.

The page is that of `service/page`, with the files of `service/page/local` in place of the calls of the HTTP API. The
runtime, onnxruntime-web, comes from the npm registry.
"""

import base64
import hashlib
import html
import io
import json
import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import httpx
import numpy as np

from service.api.info.page import PAGE_FOLDER, PAGE_POLICY
from service.artifact.card import Card
from service.artifact.files import GOLDEN_FILE, MODEL_FILE
from service.artifact.golden import check_golden, read_golden
from service.artifact.onnx_file import _fields as fields_of
from service.domain.errors import StartupError
from service.environment import prepare_process
from service.models.repository import Repository
from service.settings import from_environment, variable_of


class _Package(NamedTuple):
    """A package of the npm registry, its hash there, and the files of its folder `dist` that the site needs."""

    name: str
    version: str
    integrity: str
    files: tuple[str, ...]

    @property
    def archive(self) -> str:
        return f"{self.name}-{self.version}.tgz"


PACKAGES: Final = (
    _Package(
        "onnxruntime-web",
        "1.30.0",
        "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    ),
    _Package(
        "xz-decompress",
        "0.2.3",
        "sha512-O8v6HG8T0PrKBcpyWA13GkSYWFvncwzuzcLx5A7++l3HsE3atmoetXjIxrZ/JV/nbvSZ7WS4+3XvREZuVn+rEA==",
        ("package/xz-decompress.min.js",),
    ),
)
_REGISTRY: Final = "https://registry.npmjs.org"
_MAX_MODEL_BYTES: Final = 100_000_000  # GitHub takes no larger files, and a phone has no memory for them
_MANTISSA_BITS: Final = 14  # that are kept of float32 weights; half precision has 10
_FLOAT32, _DATA_TYPE, _RAW_DATA = 1, 2, 9  # a `TensorProto` of `onnx.proto`
_GRAPH, _INITIALIZER = 7, 5
# No larger dictionary: the browser allocates it. It checks CRC-32 only.
_XZ: Final = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 24}]

Files = dict[str, bytes]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--models", "--model-dir", "folder", help="directory of the models  [IGN_MODEL_DIR; shipped]")
@click.option("--default-model", "default", help="model that the page shows first  [IGN_DEFAULT_MODEL]")
@click.option(
    "--runtime",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help=f"folder with the archives of `npm pack {' '.join(f'{p.name}@{p.version}' for p in PACKAGES)}`  [npm registry]",
)
@click.option("--url", help="address that the site will have, for the picture of link previews")
def site(out: Path, *, folder: str | None, default: str | None, runtime: Path | None, url: str | None) -> None:
    """Write the page into the folder OUT, as static files that run the models in the browser, without a server."""
    options = {variable_of("model_dir"): folder, variable_of("default_model"): default}
    try:
        prepare_process()
        settings = from_environment({name: value for name, value in options.items() if value is not None})
        refs = Repository(settings.model_dir, lambda _: [], default=settings.default_model).find_all()
        if out.is_dir() and any(out.iterdir()) and not (out / "models.json").is_file():
            raise StartupError(f"{out} holds other files; give a new or empty folder, or one that `ign site` wrote")
        files = _runtime_files(runtime)
        index = _add_models(files, settings.model_dir, refs)
        index["default"] = next(
            (ref for ref in map(_ref, index["models"]) if settings.default_model in (ref, ref.split("/")[0])),
            _ref(index["models"][0]),
        )
        _add_page(files, index, url)
        _write(files, out)
    except StartupError as exc:
        raise click.ClickException(exc.detail) from exc
    except OSError as exc:
        raise click.ClickException(f"{exc.filename}: {exc.strerror}") from exc
    size = sum(map(len, files.values())) / 1e6
    click.echo(f"{out}: {len(files)} files, {size:.1f} MB; `python -m http.server -d {out}` shows the page", err=True)


def _ref(card: Mapping[str, Any]) -> str:
    return f"{card['name']}/{card['version']}"


def _runtime_files(folder: Path | None) -> Files:
    contents: Files = {}
    for package in PACKAGES:
        click.echo(f"{package.name} {package.version}", err=True)
        data = _download(package) if folder is None else (folder / package.archive).read_bytes()
        digest = f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}"
        if digest != package.integrity:
            raise StartupError(f"{package.archive}: not the file that was published, which has the hash {package.integrity}")
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for name in package.files:
                member = archive.extractfile(f"package/dist/{name}")
                contents[f"runtime/{Path(name).name}"] = member.read() if member else b""
    return contents


def _download(package: _Package) -> bytes:
    url = f"{_REGISTRY}/{package.name}/-/{package.archive}"
    try:
        return httpx.get(url, timeout=60, follow_redirects=True).raise_for_status().content
    except httpx.HTTPError as exc:
        command = f"npm pack {package.name}@{package.version}"
        raise StartupError(f"{url}: {exc}; run `{command}` where there is a network, and give --runtime") from exc


def _add_models(files: Files, folder: Path, refs: list[str]) -> dict[str, Any]:
    """Add the packed runtime and models to the files; returns what `models.json` says of them."""
    index: dict[str, Any] = {"models": [], "failures": []}
    wasm = next(name for name in files if name.endswith(".wasm"))
    index["runtime"] = _add_packed(files, f"{wasm}.xz", files.pop(wasm))
    for ref in refs:
        try:
            card, digest, data = _read_model(folder / ref)
        except StartupError as exc:
            click.echo(f"{ref}: left out: {exc.detail}", err=True)
            name, _, version = ref.partition("/")
            index["failures"].append({"name": name, "version": version, "reason": exc.detail})
            continue
        file = _add_packed(files, f"models/{ref}/{MODEL_FILE}.xz", data, planes=True)
        members = {"digest": f"sha256:{digest}", "device": "this browser", "file": file}
        index["models"].append(card.model_dump(mode="json") | members)
        click.echo(f"{ref}: {len(files[file['path']]) / 1e6:.1f} MB", err=True)
    if not index["models"]:
        raise StartupError(f"{folder}: no model of it can be used")
    return index


def _read_model(folder: Path) -> tuple[Card, str, bytes]:
    """Card, digest and content of a model, its weights rounded if the golden rows allow that."""
    from service.runtime.onnx_model import OnnxModel  # imports onnxruntime

    size = (folder / MODEL_FILE).stat().st_size
    if size > _MAX_MODEL_BYTES:
        raise StartupError(f"{MODEL_FILE} has {size / 1e6:.0f} MB; a page has room for {_MAX_MODEL_BYTES / 1e6:.0f}")
    data = (folder / MODEL_FILE).read_bytes()
    model, rounded = OnnxModel(data, device="cpu"), _round_weights(data)
    golden = read_golden(folder / GOLDEN_FILE, model.card.shape)
    if golden.digest != model.digest:
        raise StartupError(f"{GOLDEN_FILE} belongs to another {MODEL_FILE}")
    is_close = check_golden(OnnxModel(rounded, device="cpu"), golden, model.card.tolerance.fp16).passed
    return model.card, model.digest, rounded if is_close else data


def _round_weights(data: bytes) -> bytes:
    """An ONNX file whose float32 weights have zeros after the first bits of the mantissa."""
    rounded = bytearray(data)
    dropped = 23 - _MANTISSA_BITS
    for graph in _find(memoryview(rounded), _GRAPH):
        for tensor in _find(graph, _INITIALIZER):
            fields = dict(fields_of(tensor))
            if int.from_bytes(fields.get(_DATA_TYPE, b""), "little") == _FLOAT32 and _RAW_DATA in fields:
                words = np.frombuffer(fields[_RAW_DATA], np.uint32)
                words[...] = (words + np.uint32(1 << dropped - 1)) >> dropped << dropped
    return bytes(rounded)


def _find(message: memoryview, number: int) -> Iterator[memoryview]:
    return (memoryview(value) for field, value in fields_of(message) if field == number)


def _add_packed(files: Files, path: str, content: bytes, *, planes: bool = False) -> dict[str, Any]:
    """Add a file packed with xz; returns what the page has to know to unpack it."""
    words = np.frombuffer(content + bytes(-len(content) % 4), np.uint8).reshape(-1, 4)
    stored = words.T.tobytes() if planes else content
    files[path] = lzma.compress(stored, check=lzma.CHECK_CRC32, filters=_XZ)
    digest = base64.b64encode(hashlib.sha256(files[path]).digest()).decode()
    return {"path": path, "integrity": f"sha256-{digest}", "bytes": len(content), "planes": planes}


def _add_page(files: Files, index: Mapping[str, Any], url: str | None) -> None:
    for folder in (PAGE_FOLDER, PAGE_FOLDER / "local"):  # the second one has another `api.js`
        files |= {f"page/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()}
    files["runtime/LICENSE.txt"] = files.pop("page/LICENSE.txt")
    files["models.json"] = json.dumps(index, separators=(",", ":")).encode()
    policy = PAGE_POLICY.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:")
    policy = policy.replace("connect-src 'self'", "connect-src 'self' data:").replace("frame-ancestors 'none'; ", "")
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}; trusted-types ign">\n'
    if url:
        head += f'<meta property="og:image" content="{html.escape(url.rstrip("/"))}/page/preview.png">\n'
    page = files.pop("page/index.html").decode()
    page = page.replace('<html lang="en">', '<html lang="en" class="site">')
    files["index.html"] = page.replace("<title>", f"{head}<title>").encode()
    worker = files.pop("page/service-worker.js").decode()
    kept = ["./", *(name for name in sorted(files) if not name.endswith((".xz", ".png", ".txt", "index.html")))]
    build = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()[:16]
    constants = f"const BUILD = {json.dumps(build)};\nconst FILES = {json.dumps(kept)};\n"
    files["service-worker.js"] = f"{constants}{worker}".encode()


def _write(files: Files, out: Path) -> None:
    """Write the files; those of an earlier site are removed, all others in the folder stay."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name in ("models", "page", "runtime"):
            shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(folder, out, dirs_exist_ok=True)
