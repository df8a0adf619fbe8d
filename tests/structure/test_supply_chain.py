"""`docker/digests.py` against a registry, `docker/audit.py` against a database of vulnerabilities."""

import hashlib
import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from docker import audit, digests
from tests.helpers.live import ROOT

MANIFEST = b'{"schemaVersion": 2}'
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in digests.FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def registry(missing: str = "", digest: str = DIGEST) -> httpx.Client:
    """A client of a registry that asks for a token; it lacks images with ``missing`` in their path."""

    def reply(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/token":
            return httpx.Response(200, json={"token": f"for {request.url.params['scope']}"})
        if "Authorization" not in request.headers:
            challenge = f'Bearer realm="https://{request.url.host}/token",service="s",scope="pull"'
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})
        assert request.headers["Authorization"] == "Bearer for pull"
        if missing and missing in request.url.path:
            return httpx.Response(404)
        return httpx.Response(200, content=MANIFEST, headers={"Docker-Content-Digest": digest})

    return httpx.Client(transport=httpx.MockTransport(reply))


def texts(tree: Path) -> dict[str, str]:
    return {name: (tree / name).read_text() for name in digests.FILES}


def test_digests_are_written_behind_the_tags_and_renewed(tree: Path) -> None:
    before = texts(tree)
    assert set(digests.pin(tree, registry()).values()) == {DIGEST}
    assert all(pinned for _, _, pinned in digests.references(tree))
    pinned = texts(tree)
    assert {name: re.sub("@sha256:[0-9a-f]{64}", "", text) for name, text in pinned.items()} == before
    digests.pin(tree, registry())
    assert texts(tree) == pinned


@pytest.mark.parametrize("broken", [{"missing": "grafana"}, {"digest": "sha256:" + "0" * 64}])
def test_without_every_digest_none_is_written(tree: Path, broken: dict[str, str]) -> None:
    before = texts(tree)
    with pytest.raises(digests.OutOfReach):
        digests.pin(tree, registry(**broken))
    assert texts(tree) == before


def test_every_public_image_is_known_to_the_command() -> None:
    known = {image for _, image, _ in digests.references(ROOT)}
    public = re.compile(
        r"(?m)^(?:FROM|\s+image:|ARG BASE=) ?(?!\$|ign-service|base|build|runtime)([a-z][^\s@]+:[^\s@]+)"
    )
    assert known == {image for name in digests.FILES for image in public.findall((ROOT / name).read_text())}


@pytest.fixture
def database() -> Iterator[str]:
    """An OSV database that knows one vulnerability, of `pillow`."""
    fixed = {"events": [{"introduced": "0"}, {"fixed": "99.0"}], "type": "ECOSYSTEM"}
    affected = [{"package": {"name": "pillow", "ecosystem": "PyPI"}, "ranges": [fixed]}]
    at = "2026-01-01T00:00:00Z"
    known = {"id": "GHSA-xxxx", "published": at, "modified": at, "details": "bad", "affected": affected}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"vulns": [known]} if query["package"]["name"] == "pillow" else {}).encode()
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "is_reachable", "status", "text"),
    [
        (("numpy",), True, 0, ""),
        (("numpy", "pillow"), True, 1, "pillow 1.0: GHSA-xxxx, fixed in 99.0"),
        (("numpy",), False, 3, "out of reach"),
    ],
)
def test_the_audit_says_whether_something_is_known(
    database: str,
    names: tuple[str, ...],
    is_reachable: bool,
    status: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if importlib.util.find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed")
    lines = (f"{name}==1.0 --hash=sha256:{'0' * 64}\n" for name in names)
    (tmp_path / "some.txt").write_text("".join(lines))
    monkeypatch.setattr(audit, "LOCKS", tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url = database if is_reachable else "http://127.0.0.1:9/v1/query"
    assert audit.main(["--vulnerability-service", "osv", "--osv-url", url]) == status
    assert text in "".join(capsys.readouterr())


def test_releases_that_the_database_does_not_know_are_not_called_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip-audit itself ends with status 0 for them."""
    monkeypatch.setattr(audit, "LOCKS", tmp_path)
    (tmp_path / "some.txt").touch()
    for unknown, status in (([], 0), (["numpy: not on PyPI"], 3)):
        monkeypatch.setattr(audit, "audit", lambda *_, unknown=unknown: ([], unknown))
        assert audit.main([]) == status
