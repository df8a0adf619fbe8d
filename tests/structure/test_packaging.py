"""What is shipped around the code: extras, wheels, `make run`, and the containers' health check on real sockets."""

import importlib.util
import re
import socket
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.helpers.live import ROOT, environment


def project(folder: str = "") -> dict[str, list[str]]:
    """Extra → its requirements, as names only; "" for those that are always there."""
    table = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    groups = {"": table["dependencies"], **table["optional-dependencies"]}
    return {extra: sorted(re.split(r"[^\w-]", need)[0] for need in needs) for extra, needs in groups.items()}


def test_each_runtime_has_its_extra_only_training_has_torch_and_the_client_httpx() -> None:
    packages = {"onnxruntime", "onnxruntime-gpu", "torch"}
    places = {(extra, name) for extra, needs in project().items() for name in packages.intersection(needs)}
    assert places == {("cpu", "onnxruntime"), ("gpu", "onnxruntime-gpu"), ("train", "torch")}
    assert project("sdk")[""] == ["httpx"]
    pythons = {
        re.findall("requires-python.*", (ROOT / folder / "pyproject.toml").read_text())[0] for folder in ("", "sdk")
    }
    assert len(pythons) == 1
    # The wheel of the service holds the client.
    assert {"httpx", *project("sdk")["images"]} <= set(project()[""])


@pytest.mark.parametrize(
    ("folder", "packages"),
    [
        (".", ["ign", "ign_client", "model_export", "service", "service/shipped_models"]),
        ("sdk", ["ign_client"]),
    ],
)
def test_a_wheel_holds_every_file_of_its_packages_and_its_licence(
    folder: str, packages: list[str], tmp_path: Path
) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed, so no wheel was built")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT / folder, capture_output=True, timeout=60, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (licence,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    sources = {"ign_client": ROOT / "sdk/ign_client", "service/shipped_models": ROOT / "models"}
    wanted = {
        f"{package}/{file.relative_to(source)}"
        for package in packages
        for source in [sources.get(package, ROOT / package)]
        for file in source.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert {f"{package}/py.typed" for package in packages if package != "service/shipped_models"} <= wanted
    assert names == wanted


def test_the_environment_passes_through_make_run(tmp_path: Path) -> None:
    (tmp_path / ".made").touch()
    (tmp_path / ".installed-cpu-serve").touch()
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$* on port $IGN_PORT"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["make", "--silent", f"VENV={tmp_path}", "run"],
        cwd=ROOT,
        env=environment(MAKEFLAGS="", MAKELEVEL="", IGN_PORT="9000"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["-m", "service", "on", "port", "9000"]


# The health check


@contextmanager
def answering(status: int | None) -> Iterator[int]:
    """A server on a free port that answers `/readyz` with a status, or every GET with what is not HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if status is None:
                self.wfile.write(b"SSH-2.0-nothing\r\n")
                return
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(b'{"detail":\n "models are being loaded"}')

        def log_message(self, *args: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def health(port: int, **settings: str) -> tuple[int, str]:
    command = [sys.executable, "-I", str(ROOT / "docker" / "healthcheck.py")]
    env = {"IGN_PORT": str(port), **settings}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", ""])
def test_healthy(host: str) -> None:
    with answering(200) as port:
        assert health(port, IGN_HOST=host) == (0, "")


@pytest.mark.parametrize(("status", "reason"), [(503, r"503: (?s:.*)models are being loaded"), (None, "no answer: ")])
def test_not_ready_or_something_else_says_why(status: int | None, reason: str) -> None:
    with answering(status) as port:
        code, text = health(port)
    assert code == 1
    assert re.match(reason, text)


@pytest.mark.parametrize("listens", [True, False])
def test_nobody_who_answers(listens: bool) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        code, text = health(silent.getsockname()[1], IGN_HOST="127.0.0.1")
    assert code == 1
    assert text.startswith("no answer: ")
