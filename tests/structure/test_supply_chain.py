"""`docker/digests.py` against a registry, `docker/audit.py` against a database of vulnerabilities."""

import hashlib
import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from docker import audit, digests
from tests.helpers.live import ROOT

# docker/digests.py

MANIFEST = b'{"schemaVersion": 2}'
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in digests.FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


class Registry:
    """A registry that asks for a token, and remembers what it was asked."""

    def __init__(self, missing: str = "", digest: str = DIGEST) -> None:
        self.asked: list[str] = []
        self._missing, self._digest = missing, digest

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/token":
            return httpx.Response(200, json={"token": f"for {request.url.params['scope']}"})
        self.asked.append(f"{request.url.host}{request.url.path}")
        if "Authorization" not in request.headers:
            challenge = f'Bearer realm="https://{request.url.host}/token",service="s",scope="pull"'
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})
        assert request.headers["Authorization"] == "Bearer for pull"
        if self._missing and self._missing in request.url.path:
            return httpx.Response(404)
        return httpx.Response(200, content=MANIFEST, headers={"Docker-Content-Digest": self._digest})

    def client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(self))


def texts(tree: Path) -> dict[str, str]:
    return {name: (tree / name).read_text() for name in digests.FILES}


def test_digests_are_written_behind_the_tags_and_renewed(tree: Path) -> None:
    before = texts(tree)
    registry = Registry()
    assert set(digests.pin(tree, registry.client()).values()) == {DIGEST}
    assert "registry-1.docker.io/v2/library/python/manifests/3.11-slim-bookworm" in registry.asked
    assert any(asked.startswith("nvcr.io/v2/nvidia/") for asked in registry.asked)
    assert all(pinned for _, _, pinned in digests.references(tree))
    assert {name: re.sub("@sha256:[0-9a-f]{64}", "", text) for name, text in texts(tree).items()} == before
    pinned = texts(tree)
    digests.pin(tree, Registry().client())
    assert texts(tree) == pinned


@pytest.mark.parametrize("registry", [Registry(missing="grafana"), Registry(digest="sha256:" + "0" * 64)])
def test_without_every_digest_none_is_written(tree: Path, registry: Registry) -> None:
    before = texts(tree)
    with pytest.raises(digests.OutOfReach):
        digests.pin(tree, registry.client())
    assert texts(tree) == before


def test_every_public_image_is_known_to_the_command() -> None:
    known = {image for _, image, _ in digests.references(ROOT)}
    public = re.compile(
        r"(?m)^(?:FROM|\s+image:|ARG BASE=) ?(?!\$|ign-service|base|build|runtime)([a-z][^\s@]+:[^\s@]+)"
    )
    assert known == {image for name in digests.FILES for image in public.findall((ROOT / name).read_text())}


# docker/audit.py


@pytest.fixture
def database() -> Iterator[str]:
    """An OSV database that knows one vulnerability, of `pillow`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            event = {"events": [{"introduced": "0"}, {"fixed": "99.0"}], "type": "ECOSYSTEM"}
            known: list[dict[str, Any]] = [
                {
                    "id": "GHSA-xxxx",
                    "published": "2026-01-01T00:00:00Z",
                    "modified": "2026-01-01T00:00:00Z",
                    "details": "bad",
                    "affected": [{"package": {"name": "pillow", "ecosystem": "PyPI"}, "ranges": [event]}],
                }
            ]
            body = json.dumps({"vulns": known} if asked["package"]["name"] == "pillow" else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()


def statuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, *names: str) -> int:
    """Status of the audit of a lock of these packages."""
    if importlib.util.find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed")
    lines = (f"{name}==1.0 --hash=sha256:{'0' * 64}\n" for name in names)
    (tmp_path / "some.txt").write_text("".join(lines))
    monkeypatch.setattr(audit, "LOCKS", tmp_path)
    return audit.main(["--vulnerability-service", "osv", "--osv-url", url])


@pytest.mark.slow
@pytest.mark.parametrize(("names", "status"), [(("numpy",), 0), (("numpy", "pillow"), 1)])
def test_the_audit_says_whether_something_is_known(
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    names: tuple[str, ...],
    status: int,
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert statuses(tmp_path, monkeypatch, database, *names) == status
    assert ("pillow 1.0: GHSA-xxxx, fixed in 99.0" in capsys.readouterr().out) is (status == 1)


@pytest.mark.slow
def test_the_audit_has_a_status_of_its_own_without_its_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert statuses(tmp_path, monkeypatch, "http://127.0.0.1:9/v1/query", "numpy") == 3
    assert "out of reach" in capsys.readouterr().err


def test_releases_that_the_database_does_not_know_are_not_called_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip-audit itself ends with status 0 for them."""
    monkeypatch.setattr(audit, "LOCKS", tmp_path)
    (tmp_path / "some.txt").touch()
    for unknown, status in (([], 0), (["numpy: not on PyPI"], 3)):
        monkeypatch.setattr(audit, "audit", lambda *_, unknown=unknown: ([], unknown))
        assert audit.main([]) == status
