"""Models in a real OCI registry, read by the tools that others use: skopeo, oras and cosign."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.contract.harness import write_models
from tests.helpers.live import environment, free_port, live_service, until

TOOLS = ("docker-registry", "skopeo", "oras", "cosign")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} of Debian")


class Registry:
    """Callers log in as `user` with `pass`, which `config.json` in its folder has, as Docker keeps it."""

    def __init__(self, folder: Path) -> None:
        self.host = f"127.0.0.1:{free_port()}"
        config = folder / "registry.yml"
        storage = f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}"
        auth = f"auth: {{htpasswd: {{realm: models, path: {folder / 'users'}}}}}"
        config.write_text(f"version: 0.1\n{storage}\nhttp: {{addr: {self.host}}}\n{auth}\n")
        (folder / "users").write_text("user:$2y$04$4Ne5nCzLftqK/4l5AgPwae0QVskb/uJD6XLlAp8gn4UiOk9ByzEg.")
        (folder / "config.json").write_text(json.dumps({"auths": {self.host: {"auth": "dXNlcjpwYXNz"}}}))
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=quiet, stderr=quiet)
        until(self._serves, lambda: "docker-registry does not serve")

    def _serves(self) -> bool:
        try:
            return httpx.get(f"http://{self.host}/v2/", auth=("user", "pass"), timeout=5.0).is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "config.json"))  # skopeo's
    yield registry
    registry.stop()


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment(**variables), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ign(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ign", "models", *arguments]
    return subprocess.run(command, env=environment(IGN_DEVICE="cpu"), capture_output=True, text=True, check=False)


def test_models_go_through_a_registry(registry: Registry, tmp_path: Path) -> None:
    folder, tag = write_models(tmp_path / "models"), f"oci://{registry.host}/team/models:1.0"
    pushed = ign("push", tag, "--models", folder)
    assert pushed.returncode == 0, pushed.stderr
    url = pushed.stdout.strip()
    name, _, digest = url.removeprefix("oci://").partition("@")

    # What others read
    run("skopeo", "copy", "--src-tls-verify=false", f"docker://{name}@{digest}", "dir:copied", cwd=tmp_path)
    run("oras", "pull", "--plain-http", f"{name}@{digest}", "-o", "pulled", cwd=tmp_path)
    unpacked = tmp_path / "unpacked"
    for file in (tmp_path / "copied").iterdir():
        if tarfile.is_tarfile(file):
            with tarfile.open(file) as tar:
                tar.extractall(unpacked, filter="data")
    assert [*run("diff", "-r", unpacked / "models", folder, cwd=tmp_path)] == []

    # Signatures
    key = {"COSIGN_PASSWORD": "secret"}
    run("cosign", "generate-key-pair", cwd=tmp_path, **key)
    unsigned = ign("verify", url, "--key", tmp_path / "cosign.pub")
    assert (unsigned.returncode, "has no such signature" in unsigned.stderr) == (2, True), unsigned.stderr
    sign = ("cosign", "sign", "--yes", "--tlog-upload=false", "--key", "cosign.key", f"{name}@{digest}")
    run(*sign, cwd=tmp_path, **key)
    signed = ign("verify", tag, "--key", tmp_path / "cosign.pub")
    assert signed.returncode == 0, signed.stderr
    assert signed.stdout.splitlines()[0] == f"{name}@{digest}: signed"
    assert [line.partition(": ok")[0] for line in signed.stdout.splitlines()[1:]] == ["colour/1", "grey/2", "grey/10"]

    # The service
    settings = {"IGN_MODEL_DIR": url, "IGN_MODEL_CACHE": str(tmp_path / "cache"), "IGN_DEFAULT_MODEL": "grey"}
    with live_service(IGN_DEVICE="cpu", **settings) as address:
        assert [model["version"] for model in httpx.get(f"{address}/models").json()["models"]] == ["1", "2", "10"]
    assert ign("pull", url, tmp_path / "out").returncode == 0
    registry.stop()
    with live_service(IGN_DEVICE="cpu", **settings) as address:  # out of reach
        assert httpx.post(f"{address}/generate", json={"seed": 1}).status_code == 200
    failed = ign("pull", url, tmp_path / "out")
    assert failed.returncode == 2
    assert failed.stderr.count(os.linesep) == 1
    assert registry.host in failed.stderr
