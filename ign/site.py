"""`ign site`: the page “Make it real” as a folder of static files, which runs the models in the
browser.

It is the page of `service/page`, with `service/page/local` for the calls of the API. The runtime
comes from npm.
"""

import base64
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
import httpx
import numpy as np

from ign.parsers import SETTINGS
from service.api.info.page import PAGE_FOLDER, PAGE_POLICY
from service.artifact.files import GOLDEN_FILE, MODEL_FILE
from service.artifact.golden import check_golden, read_golden
from service.artifact.onnx_file import fields_of
from service.domain.errors import StartupError
from service.environment import prepare_process
from service.models.repository import Repository
from service.settings import from_environment, variable_of

Files = dict[str, bytes]

# Package of the npm registry → the hash of its archive there, and the files of `package/dist` that
# the site needs.
PACKAGES: Final = {
    "onnxruntime-web@1.30.0": (
        "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    ),
    "xz-decompress@0.2.3": (
        "sha512-O8v6HG8T0PrKBcpyWA13GkSYWFvncwzuzcLx5A7++l3HsE3atmoetXjIxrZ/JV/nbvSZ7WS4+3XvREZuVn+rEA==",
        ("package/xz-decompress.min.js",),
    ),
}
_PACK: Final = f"npm pack {' '.join(PACKAGES)}"
# GitHub takes no larger files, and phones have no memory for them
_MAX_MODEL_BYTES: Final = 100_000_000
_MANTISSA_BITS: Final = 14  # that are kept of float32 weights; half precision has 10
# fields of `onnx.proto`: of a model, of a graph,
_GRAPH = 7
_INITIALIZER = 5
_DATA_TYPE, _RAW_DATA, _FLOAT32 = 2, 9, 1  # of a tensor; and a type
# The browser allocates the dictionary, and checks CRC-32 only.
_XZ: Final = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 24}
# Bytes of weights hardly repeat: a short search halves the time, and no context saves bytes.
_XZ_WEIGHTS: Final = {"mf": lzma.MF_HC3, "depth": 1, "nice_len": 16, "lc": 0, "pb": 0}


@click.command(context_settings=SETTINGS)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--models", "--model-dir", "model_dir", help="directory of the models  [IGN_MODEL_DIR; shipped]"
)
@click.option("--default-model", help="model that the page shows first  [IGN_DEFAULT_MODEL]")
@click.option(
    "--runtime",
    type=click.Path(path_type=Path),
    help=f"folder of what `{_PACK}` writes  [npm registry]",
)
def site(out: Path, *, runtime: Path | None, **options: str | None) -> None:
    """Write the page into the folder OUT, as static files that run the models in the browser,
    without a server.
    """
    prepare_process()
    settings = from_environment(
        {variable_of(name): value for name, value in options.items() if value is not None}
    )
    refs = Repository(settings.model_dir, lambda _: [], default=settings.default_model).find_all()
    if (out / "index.html").exists() and not (out / "service-worker.js").exists():
        raise StartupError(
            f"{out} holds another page; give a new folder, or one that `ign site` wrote"
        )
    try:
        files = _runtime_files(runtime)
        _add_page(files, _add_models(files, settings.model_dir, refs, settings.default_model))
        for name, content in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)
    except OSError as exc:
        raise StartupError(f"{exc.filename}: {exc.strerror}") from exc
    click.echo(
        f"{out}: {len(files)} files, {sum(map(len, files.values())) / 1e6:.1f} MB; "
        f"`python -m http.server 8001 -d {out}` shows the page",
        err=True,
    )


def _runtime_files(folder: Path | None) -> Files:
    contents: Files = {}
    for package, (integrity, members) in PACKAGES.items():
        archive = f"{package.replace('@', '-')}.tgz"
        data = _download(archive) if folder is None else (folder / archive).read_bytes()
        if f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}" != integrity:
            raise StartupError(
                f"{archive}: not what was published, whose hash is {integrity}; load it again"
            )
        with tarfile.open(fileobj=io.BytesIO(data)) as files:
            for member in members:
                file = files.extractfile(f"package/dist/{member}")
                name = Path(member).name.replace(".mjs", ".js")  # whose type every web server knows
                contents[f"runtime/{name}"] = file.read() if file else b""
    return contents


def _download(name: str) -> bytes:
    url = f"https://registry.npmjs.org/{name.rsplit('-', 1)[0]}/-/{name}"
    click.echo(f"loading {url}", err=True)
    try:
        return httpx.get(url, timeout=60, follow_redirects=True).raise_for_status().content
    except httpx.HTTPError as exc:
        raise StartupError(
            f"{url}: {exc}; run `{_PACK}` where there is a network, and give --runtime"
        ) from exc


def _add_models(files: Files, folder: Path, refs: list[str], default: str) -> dict[str, Any]:
    """Pack the runtime, and add the models; returns `models.json`, which says what there is."""
    wasm = next(name for name in files if name.endswith(".wasm"))
    models = dict[str, Any]()
    failures = list[dict[str, str]]()
    index = {
        "runtime": _add_packed(files, wasm, files.pop(wasm), planes=False),
        "failures": failures,
    }
    for ref in refs:
        try:
            card, data = _read_model(folder / ref)
        except StartupError as exc:
            click.echo(f"{ref}: left out: {exc.detail}", err=True)
            name, version = ref.split("/")
            failures.append({"name": name, "version": version, "reason": exc.detail})
            continue
        models[ref] = card | {
            "file": _add_packed(files, f"models/{ref}/{MODEL_FILE}", data, planes=True)
        }
    if not models:
        raise StartupError(f"{folder}: no model of it can be used")
    # As in the service, a name stands for its highest version.
    named = [ref for ref in models if default in (ref, ref.split("/")[0])]
    return index | {"models": list(models.values()), "default": (named or list(models))[-1]}


def _read_model(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The card of a model, and its content: with rounded weights, if the golden rows allow that."""
    from service.runtime.onnx_model import OnnxModel  # imports onnxruntime

    if (size := (folder / MODEL_FILE).stat().st_size) > _MAX_MODEL_BYTES:
        raise StartupError(
            f"{MODEL_FILE} has {size / 1e6:.0f} MB; a page has room for "
            f"{_MAX_MODEL_BYTES / 1e6:.0f}"
        )
    data = (folder / MODEL_FILE).read_bytes()
    model = OnnxModel(data, device="cpu")
    card = model.card
    golden = read_golden(folder / GOLDEN_FILE, *card.row_shapes)
    for content, tolerance in (
        (_round_weights(data), card.tolerance.fp16),
        (data, card.tolerance.fp32),
    ):
        if check_golden(OnnxModel(content, device="cpu"), golden, tolerance).passed:
            return card.model_dump(mode="json") | {
                "digest": f"sha256:{model.digest}",
                "device": "this browser",
            }, content
    raise StartupError(f"{MODEL_FILE} does not give the rows of {GOLDEN_FILE}")


def _round_weights(data: bytes) -> bytes:
    """An ONNX file whose float32 weights have zeros after the first bits of the mantissa."""
    rounded = bytearray(data)
    dropped = 23 - _MANTISSA_BITS
    graphs = [value for field, value in fields_of(memoryview(rounded)) if field == _GRAPH]
    tensors = [
        value
        for graph in graphs
        for field, value in fields_of(memoryview(graph))
        if field == _INITIALIZER
    ]
    for fields in [dict(fields_of(memoryview(tensor))) for tensor in tensors]:
        if (
            int.from_bytes(fields.get(_DATA_TYPE, b""), "little") == _FLOAT32
            and _RAW_DATA in fields
        ):
            words = np.frombuffer(fields[_RAW_DATA], np.uint32)
            words[...] = (words + np.uint32(1 << dropped - 1)) >> dropped << dropped
    return bytes(rounded)


def _add_packed(files: Files, name: str, content: bytes, *, planes: bool) -> dict[str, Any]:
    """Add a file packed with xz, for weights by `planes` of bytes; returns what the page needs to
    unpack it.
    """
    click.echo(f"packing {name}: ", nl=False, err=True)
    words = np.frombuffer(content + bytes(-len(content) % 4), np.uint8).reshape(-1, 4)
    packed = lzma.compress(
        words.T.tobytes() if planes else content,
        check=lzma.CHECK_CRC32,
        filters=[_XZ | _XZ_WEIGHTS if planes else _XZ],
    )
    click.echo(f"{len(packed) / 1e6:.1f} MB", err=True)
    files[f"{name}.xz"] = packed
    integrity = f"sha256-{base64.b64encode(hashlib.sha256(packed).digest()).decode()}"
    return {"path": f"{name}.xz", "integrity": integrity, "bytes": len(content), "planes": planes}


def _add_page(files: Files, index: Mapping[str, Any]) -> None:
    for folder in (PAGE_FOLDER, PAGE_FOLDER / "local"):  # the second one has another `api.js`
        files |= {
            f"page/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()
        }
    files["runtime/LICENSE.txt"] = files.pop("page/LICENSE.txt")
    files["models.json"] = json.dumps(index, separators=(",", ":")).encode()
    policy = (
        PAGE_POLICY.replace(
            "script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:"
        )
        .replace("connect-src 'self'", "connect-src 'self' data:")
        .replace("frame-ancestors 'none'; ", "")
    )
    page = files.pop("page/index.html").decode()
    files["index.html"] = (
        page.replace('<html lang="en">', '<html lang="en" class="site">')
        .replace(
            "<title>",
            f'<meta http-equiv="Content-Security-Policy" content="{policy}; trusted-types ign">'
            "\n<title>",
        )
        .encode()
    )
    worker = files.pop("page/service-worker.js")
    kept = [
        "./",
        *(
            name
            for name in sorted(files)
            if not name.endswith((".xz", ".png", ".txt", "index.html"))
        ),
    ]
    build = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()[:16]
    files["service-worker.js"] = (
        f'const BUILD = "{build}";\nconst FILES = {json.dumps(kept)};\n'.encode() + worker
    )
