"""Models in an OCI registry (`IGN_MODEL_DIR=oci://registry/models@sha256:…`): an image whose layers hold them.

The files of the image are such as `models/mnist/6/model.onnx`, so KServe mounts it as a modelcar, and Kubernetes as an
image volume. `push` makes a layer for each version: a new version moves no other one. The requests are those of the OCI
Distribution Specification 1.1.
"""

import base64
import hashlib
import json
import logging
import re
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import httpx

from service.artifact.files import MODEL_PATH
from service.domain.errors import StartupError
from service.environment import docker_config

_LOG = logging.getLogger(__name__)
_URL: Final = re.compile(
    r"oci://(?P<host>[A-Za-z0-9.-]+(?::[0-9]{1,5})?)/(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
_LOCAL: Final = ("localhost", "127.0.0.1")  # asked by HTTP, as Docker does
_MEMBER: Final = re.compile(rf"(?:\./|/)?models/({MODEL_PATH})")
_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
_INDEX, _MANIFEST, _CONFIG = (f"application/vnd.oci.image.{kind}.v1+json" for kind in ("index", "manifest", "config"))
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_DOCKER: Final = [f"application/vnd.docker.distribution.manifest.{kind}v2+json" for kind in ("", "list.")]
_DOCKER_HUB: Final = "docker.io"
_ACCEPT: Final = ", ".join((_MANIFEST, _INDEX, *_DOCKER))
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
_WAITS_S: Final = (0.5, 2.0)  # before a request is repeated that could not be answered
_TITLE: Final = "org.opencontainers.image.title"
_CHUNK: Final = 1 << 20
_MAX_MANIFEST: Final = 1 << 22  # bytes, as registries limit it
_MAX_FILE: Final = 1 << 31  # bytes; an ONNX file is smaller

Objects = Mapping[str, tuple[int, str]]


class Image:
    """An image `oci://host[:port]/repository[:tag][@sha256:…]`; raises StartupError for another URL.

    Credentials are Docker's: `config.json` in `DOCKER_CONFIG` or `~/.docker`, and its credential helpers.
    """

    def __init__(self, url: str) -> None:
        match = _URL.fullmatch(url)
        if match is None:
            raise StartupError(f"{url}: must be oci://registry/repository, with :tag or @sha256: and 64 digits")
        self.host, self._name = match["host"], match["name"]
        self._reference: str = match["digest"] or match["tag"] or "latest"
        scheme = "http" if self.host.partition(":")[0] in _LOCAL else "https"
        host = "registry-1.docker.io" if self.host == _DOCKER_HUB else self.host
        self._client = httpx.Client(
            base_url=f"{scheme}://{host}/v2/{self._name}/",
            auth=_Login(self.host),
            timeout=_TIMEOUT,
            follow_redirects=True,
            limits=httpx.Limits(max_keepalive_connections=0),  # so nothing stays open
        )
        self._unpacked = Path()

    def objects(self, known: Objects, fresh: Path) -> dict[str, tuple[int, str]]:
        """Path → size and layer of each file of a model; the layers that ``known`` lacks are unpacked into ``fresh``.

        Raises StartupError if the registry cannot be read, or sends bytes that do not match their digest.
        """
        digest, manifest = self._manifest(self._reference)
        _LOG.info("models of %s/%s@%s", self.host, self._name, digest)
        self._unpacked, found = fresh, dict[str, tuple[int, str]]()
        with _well_formed(digest):
            layers = [str(layer["digest"]) for layer in manifest["layers"]]
        for layer in layers:
            of_layer = {path: tag for path, tag in known.items() if tag[1] == layer}
            found |= of_layer or self._unpack(layer, fresh)
        return found

    def read(self, path: str, tag: str) -> Iterator[bytes]:
        """The bytes of a file that `objects` has unpacked."""
        with _file_of(self._unpacked, tag, path).open("rb") as file:
            yield from iter(lambda: file.read(_CHUNK), b"")

    def digest(self) -> str:
        """What the reference stands for now, `sha256:…`."""
        return self._manifest(self._reference)[0]

    def push(self, folder: Path, versions: Sequence[str]) -> str:
        """Write the version folders `name/version` of a folder as an image, and return its digest.

        The same files make the same digest. Raises StartupError if the URL has a digest, or the registry refuses.
        """
        if self._reference.startswith("sha256:"):
            raise StartupError("a digest follows from the models; push to a tag")
        layers = []
        for version in versions:
            with tempfile.TemporaryFile() as file:
                _write_layer(file, folder, version)
                layers.append({"mediaType": _LAYER, **self._upload(file), "annotations": {_TITLE: version}})
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        }
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(config).encode())
            described = {"mediaType": _CONFIG, **self._upload(file)}
        manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described, "layers": layers}
        data = json.dumps(manifest).encode()
        self._send("PUT", f"manifests/{self._reference}", content=data, headers={"Content-Type": _MANIFEST})
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    def at(self, digest: str) -> str:
        """The URL of this image with a digest."""
        return f"oci://{self.host}/{self._name}@{digest}"

    def _manifest(self, reference: str) -> tuple[str, Any]:
        """The digest of a manifest or index, and the (first) manifest."""
        with self._stream("GET", f"manifests/{reference}", headers={"Accept": _ACCEPT}) as response:
            data = b""
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > _MAX_MANIFEST:
                    raise StartupError(f"{reference}: its manifest is larger than {_MAX_MANIFEST} bytes")
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if reference.startswith("sha256:") and digest != reference:
            raise StartupError(f"{reference}: the registry sent other bytes, {digest}")
        with _well_formed(reference):
            manifest = json.loads(data)
            # Of an index, attestations have the platform `unknown`; models are the same on all others.
            images = [each for each in manifest.get("manifests", ()) if each.get("platform", {}).get("os") != "unknown"]
            inner = str(images[0]["digest"]) if images else ""
        return (digest, self._manifest(inner)[1]) if inner else (digest, manifest)

    def _unpack(self, layer: str, fresh: Path) -> dict[str, tuple[int, str]]:
        """Write the models of a layer into a folder; a file is read only after the digest of the layer is right."""
        found = dict[str, tuple[int, str]]()
        with tempfile.TemporaryFile(dir=fresh) as blob:
            hashed = hashlib.sha256()
            with self._stream("GET", f"blobs/{layer}") as response:
                for chunk in response.iter_raw(_CHUNK):
                    hashed.update(chunk)
                    blob.write(chunk)
            if layer != f"sha256:{hashed.hexdigest()}":
                raise StartupError(f"layer {layer}: the registry sent other bytes, sha256:{hashed.hexdigest()}")
            blob.seek(0)
            try:
                with tarfile.open(fileobj=blob) as tar:
                    for member in tar:
                        match = _MEMBER.fullmatch(member.name)
                        content = tar.extractfile(member) if match and member.isreg() else None
                        if match is None or content is None:
                            continue
                        if member.size > _MAX_FILE:
                            raise StartupError(f"layer {layer}: {member.name} is larger than 2 GiB")
                        file = _file_of(fresh, layer, match[1])
                        file.parent.mkdir(parents=True, exist_ok=True)
                        with file.open("wb") as out:
                            while chunk := content.read(_CHUNK):
                                out.write(chunk)
                        found[match[1]] = (member.size, layer)
            except (tarfile.TarError, EOFError, zlib.error) as exc:
                raise StartupError(f"layer {layer}: is no tar file: {exc}") from exc
        return found

    def _upload(self, file: Any) -> dict[str, Any]:
        """Send what a binary file holds, unless the registry has it; returns its digest and size."""
        size = file.tell()
        file.seek(0)
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if self._send("HEAD", f"blobs/{digest}", may_fail=True).status_code == httpx.codes.NOT_FOUND:
            place = self._send("POST", "blobs/uploads/").headers.get("Location", "")
            file.seek(0)
            url = self._client.base_url.join(place).copy_merge_params({"digest": digest})
            headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
            self._send("PUT", str(url), content=iter(lambda: file.read(_CHUNK), b""), headers=headers)
        return {"digest": digest, "size": size}

    def _send(self, method: str, path: str, *, may_fail: bool = False, **options: Any) -> httpx.Response:
        with self._stream(method, path, may_fail=may_fail, **options) as response:
            response.read()
            return response

    @contextmanager
    def _stream(self, method: str, path: str, *, may_fail: bool = False, **options: Any) -> Iterator[httpx.Response]:
        """A response; it is asked for again if the registry cannot be reached or fails."""
        waits = iter(_WAITS_S if "content" not in options else ())
        try:
            while True:
                request = self._client.build_request(method, path, **options)
                try:
                    response = self._client.send(request, stream=True)
                except httpx.TransportError:
                    if (wait := next(waits, None)) is None:
                        raise
                else:
                    is_busy = response.is_server_error or response.status_code == httpx.codes.TOO_MANY_REQUESTS
                    if not is_busy or (wait := next(waits, None)) is None:
                        break
                    response.close()
                time.sleep(wait)
            try:
                if response.is_error and not (may_fail and response.status_code == httpx.codes.NOT_FOUND):
                    raise StartupError(f"{method} {request.url}: {_reason(response)}")
                yield response
            finally:
                response.close()
        except httpx.HTTPError as exc:
            raise StartupError(f"{self.host}: {str(exc) or type(exc).__name__}") from exc


class _Login(httpx.Auth):
    """Answers the challenge of a registry, with Docker's credentials or, for a public image, without."""

    def __init__(self, host: str) -> None:
        self._host, self._header = host, ""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """As httpx asks for it."""
        if self._header:
            request.headers["Authorization"] = self._header
        response = yield request
        if response.status_code != httpx.codes.UNAUTHORIZED:
            return
        scheme, _, rest = response.headers.get("WWW-Authenticate", "").partition(" ")
        challenge, basic = dict(_CHALLENGE.findall(rest)), _credentials(self._host)
        if scheme.lower() == "bearer":
            params = {name: challenge[name] for name in ("service", "scope") if name in challenge}
            headers = {"Authorization": basic} if basic else {}
            granted = yield httpx.Request("GET", challenge.get("realm", ""), params=params, headers=headers)
            granted.read()
            try:
                answer = granted.json()
                self._header = f"Bearer {answer.get('token') or answer['access_token']}"
            except (ValueError, KeyError, AttributeError):
                return
        elif basic and self._header != basic:
            self._header = basic
        else:
            return
        request.headers["Authorization"] = self._header
        yield request


def _credentials(host: str) -> str:
    """The header for a registry from Docker's configuration; empty without one."""
    host = "https://index.docker.io/v1/" if host == _DOCKER_HUB else host
    try:
        config = json.loads(docker_config().read_bytes())
        if auth := config.get("auths", {}).get(host, {}).get("auth"):
            return f"Basic {auth}"
        helper = config.get("credHelpers", {}).get(host) or config.get("credsStore")
        if not (helper and re.fullmatch(r"[\w.-]+", helper)):
            return ""
        command = [f"docker-credential-{helper}", "get"]
        done = subprocess.run(command, input=host.encode(), capture_output=True, timeout=30, check=True)  # noqa: S603
        found = json.loads(done.stdout)
        return "Basic " + base64.b64encode(f"{found['Username']}:{found['Secret']}".encode()).decode()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, AttributeError, subprocess.SubprocessError) as exc:
        _LOG.warning("Docker's credentials of %s cannot be read: %s", host, type(exc).__name__)
        return ""


def _reason(response: httpx.Response) -> str:
    """What a registry says of an error, in a line."""
    response.read()
    try:
        said = response.json()["errors"][0]
        text = f"{said['code']}: {said.get('message', '')}"
    except (ValueError, KeyError, IndexError, TypeError):
        text = response.reason_phrase
    return f"{response.status_code} {text[:200]}"


@contextmanager
def _well_formed(what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise StartupError(f"{what}: is no manifest of an image") from exc


def _file_of(fresh: Path, layer: str, path: str) -> Path:
    return fresh / layer.rpartition(":")[2] / path


def _write_layer(file: IO[bytes], folder: Path, version: str) -> None:
    """A tar file with a version folder below `models/`, of which only the contents of the files make a difference."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        parents = Path("models", version)
        for directory in (*reversed(parents.parents[:-1]), parents):
            info = tarfile.TarInfo(str(directory))
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for source in sorted((folder / version).iterdir()):
            if source.is_file():
                info = tarfile.TarInfo(str(parents / source.name))
                info.size, info.mode = source.stat().st_size, 0o644
                with source.open("rb") as content:
                    tar.addfile(info, content)
