"""What is shipped around the code: extras, the Makefile, hooks, and the containers' health check on real sockets."""

import re
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

import ign_client
from tests.helpers.live import ROOT, environment

TARGETS = [
    "help",
    "run",
    "test",
    "check",
    "format",
    "lint",
    "types",
    "coverage",
    "containers",
    "lock",
    "train",
    "export",
    "bench",
    "gpu",
    "openapi",
]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def make(*arguments: str, venv: Path) -> str:
    """What make would run, with a virtual environment that is not there yet."""
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", f"VENV={venv}", *arguments],
        cwd=ROOT,
        env=environment(MAKEFLAGS="", MAKELEVEL=""),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


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


# sdk/pyproject.toml


def test_the_client_needs_httpx_and_nothing_else() -> None:
    project = tomllib.loads(read("sdk/pyproject.toml"))["project"]
    assert project["dependencies"] == ["httpx>=0.27,<1"]
    ours = tomllib.loads(read("pyproject.toml"))["project"]
    assert {re.split(r"\W", need)[0] for need in project["optional-dependencies"]["images"]} == {"numpy", "pillow"}
    assert set(project["optional-dependencies"]["images"]) <= set(ours["dependencies"])
    assert set(project["dependencies"]) <= set(ours["optional-dependencies"]["dev"])
    assert project["requires-python"] == ours["requires-python"]


def test_the_client_carries_its_licence_and_its_types() -> None:
    assert read("sdk/LICENSE") == read("LICENSE")
    assert (ROOT / "sdk" / "ign_client" / "py.typed").is_file()
    version = tomllib.loads(read("sdk/pyproject.toml"))["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{ign_client.__version__}"' in read(f"sdk/{version}")


# Makefile


def test_help_is_the_default_and_lists_every_target() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory"],
        cwd=ROOT,
        env=environment(MAKEFLAGS="", MAKELEVEL=""),
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.findall(r"^  make (\w+) +\S", done.stdout, flags=re.MULTILINE) == TARGETS
    phony = re.findall(r"^\.PHONY: (.*)$", read("Makefile"), flags=re.MULTILINE)
    assert phony == [" ".join(TARGETS)]


@pytest.mark.parametrize(
    ("target", "wanted"),
    [("run", "cpu"), ("bench", "cpu"), ("train", "cpu,train"), ("export", "cpu,train"), ("test", "cpu,train,dev")],
)
def test_targets_install_what_they_need_and_no_more(target: str, wanted: str, tmp_path: Path) -> None:
    assert re.findall(r"'\.\[([\w,]+)\]'", make(target, "DATA=x", venv=tmp_path / "venv")) == [wanted]


def test_the_other_runtime_leaves_first(tmp_path: Path) -> None:
    lines = make("run", "RUNTIME=gpu", venv=tmp_path / "venv").splitlines()
    actions = [line.partition("-m pip")[2] for line in lines if "-m pip" in line]
    assert len(actions) == 2
    assert re.search(r" uninstall .*--yes onnxruntime$", actions[0])
    assert actions[1].endswith("'.[gpu]'")


def test_an_installed_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".made").touch()
    (tmp_path / ".installed-cpu-serve").touch()
    assert make("run", venv=tmp_path).splitlines() == [f"{tmp_path}/bin/python -m service"]


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
    assert done.stdout == "-m service on port 9000\n"


def test_hooks_call_make() -> None:
    repositories = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    assert [hook["entry"] for hook in repositories[0]["hooks"]] == ["make lint", "make types"]


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
        assert health(IGN_PORT=str(port)) == (1, '503: {"detail": "models are being loaded"}\n')


def test_nobody_there() -> None:
    with socket.socket() as taken:  # bound, and never listening
        taken.bind(("127.0.0.1", 0))
        status, said = health(IGN_HOST="127.0.0.1", IGN_PORT=str(taken.getsockname()[1]))
    assert status == 1
    assert said.startswith("no answer: ")


def test_somebody_who_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        status, said = health(IGN_HOST="127.0.0.1", IGN_PORT=str(silent.getsockname()[1]))
    assert (status, said) == (1, "no answer: timed out\n")


def test_something_else_is_there() -> None:
    def greet(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"SSH-2.0-nothing\r\n")

    with answering(greet) as port:
        status, said = health(IGN_PORT=str(port))
    assert status == 1
    assert said.startswith("no answer: ")
