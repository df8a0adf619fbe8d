"""What is shipped around the code: extras, wheels, `make run`, and the containers' health check on real sockets."""

import importlib.util
import re
import socket
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.helpers.live import ROOT, environment


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# pyproject.toml


def extras() -> dict[str, set[str]]:
    """Extra → names of its packages; "" for those that are always there."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: {re.split(r"[^\w-]", need)[0] for need in needs} for extra, needs in groups.items()}


def test_each_runtime_has_its_extra_and_no_other() -> None:
    runtimes = {"onnxruntime", "onnxruntime-gpu"}
    found = {extra: needs & runtimes for extra, needs in extras().items() if needs & runtimes}
    assert found == {"cpu": {"onnxruntime"}, "gpu": {"onnxruntime-gpu"}}


def test_only_training_needs_torch() -> None:
    assert [extra for extra, needs in extras().items() if "torch" in needs] == ["train"]


def test_the_client_needs_httpx_and_nothing_else() -> None:
    project = tomllib.loads(read("sdk/pyproject.toml"))["project"]
    ours = tomllib.loads(read("pyproject.toml"))["project"]
    assert [re.split(r"[^\w-]", need)[0] for need in project["dependencies"]] == ["httpx"]
    assert set(project["dependencies"]) <= set(ours["dependencies"]), "the wheel of the service holds the client"
    assert set(project["optional-dependencies"]["images"]) <= set(ours["dependencies"])
    assert project["requires-python"] == ours["requires-python"]


# The wheels


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


# Makefile


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
def answering(reply: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[int]:
    """A server on a free port that answers every GET with ``reply``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply(self)

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


def ready_if(ready: bool) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200 if ready and handler.path == "/readyz" else 503)
        handler.end_headers()
        handler.wfile.write(b'{"detail":\n "models are being loaded"}')

    return reply


def health(**settings: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-I", str(ROOT / "docker" / "healthcheck.py")],
        env=settings,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", ""])
def test_healthy(host: str) -> None:
    with answering(ready_if(True)) as port:
        assert health(IGN_HOST=host, IGN_PORT=str(port)) == (0, "")


def test_not_ready_says_why() -> None:
    with answering(ready_if(False)) as port:
        status, said = health(IGN_PORT=str(port))
    assert status == 1
    assert said.startswith("503: ")
    assert "models are being loaded" in said


def test_nobody_there() -> None:
    with socket.socket() as taken:  # bound, and never listening
        taken.bind(("127.0.0.1", 0))
        status, said = health(IGN_HOST="127.0.0.1", IGN_PORT=str(taken.getsockname()[1]))
    assert status == 1
    assert said.startswith("no answer: ")


def test_somebody_who_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        status, said = health(IGN_HOST="127.0.0.1", IGN_PORT=str(silent.getsockname()[1]))
    assert status == 1
    assert said.startswith("no answer: ")


def test_something_else_is_there() -> None:
    def greet(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"SSH-2.0-nothing\r\n")

    with answering(greet) as port:
        status, said = health(IGN_PORT=str(port))
    assert status == 1
    assert said.startswith("no answer: ")
