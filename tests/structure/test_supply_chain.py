"""`docker/digests.py` against a registry, `docker/audit.py` against a database of
vulnerabilities.
"""

import hashlib
import re
import sys
from pathlib import Path

import httpx
import pytest

from docker import audit, digests
from tests.helpers.live import ROOT, run

MANIFEST = b'{"schemaVersion": 2}'
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in digests.FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def registry(missing: str = "", digest: str = DIGEST) -> httpx.Client:
    """A client of a registry that asks for a token; it lacks images with ``missing`` in their
    path.
    """

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
    assert {
        name: re.sub("@sha256:[0-9a-f]{64}", "", text) for name, text in pinned.items()
    } == before
    digests.pin(tree, registry())
    assert texts(tree) == pinned


@pytest.mark.parametrize("broken", [{"missing": "grafana"}, {"digest": "sha256:" + "0" * 64}])
def test_without_every_digest_none_is_written(tree: Path, broken: dict[str, str]) -> None:
    before = texts(tree)
    with pytest.raises(digests.OutOfReach):
        digests.pin(tree, registry(**broken))
    assert texts(tree) == before


def test_the_audit_says_whether_something_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip-audit itself ends with status 0 for releases that the database does not know."""
    monkeypatch.setattr(audit, "LOCKS", tmp_path)
    (tmp_path / "some.txt").touch()
    line = ["pillow 1.0: GHSA-xxxx, fixed in 99.0"]
    for found, status in ((([], []), 0), ((line, []), 1), (([], line), 3)):
        monkeypatch.setattr(audit, "audit", lambda *_, found=found: found)
        assert audit.main([]) == status


@pytest.mark.parametrize("command", [["actionlint"], ["zizmor", "--offline", "--no-progress"]])
def test_the_workflows_pass_the_linters(command: list[str]) -> None:
    program = Path(sys.executable).with_name(command[0])
    if not program.exists():
        pytest.skip(f"{command[0]} is not installed")
    line: list[str | Path] = [
        program,
        *command[1:],
        *(ROOT / ".github" / "workflows").glob("*.yml"),
    ]
    done = run(*line)
    assert done.returncode == 0, done.stdout
