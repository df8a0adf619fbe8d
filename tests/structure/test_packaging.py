"""What is shipped around the code: the version, `make run`, and the health check on real
sockets.
"""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from service import __version__
from tests.helpers.live import ROOT, run

# What `make version` changes itself, and what stands before a version there.
VERSIONED = ["service/__init__.py", "sdk/ign_client/_version.py", "pyproject.toml", "Dockerfile"]
VERSIONED += ["sdk/js/package.json", "sdk/js/package-lock.json"]
VERSIONED += ["plugins/ocrmypdf_ign/pyproject.toml"]
VERSIONED += [str(file.relative_to(ROOT)) for file in ROOT.glob("deploy/chart/*/Chart.yaml")]
_BEFORE = (
    r'^(?:__version__|version) = "|"ign-(?:client|service\[cpu\])==|^ARG VERSION='
    r"|^(?:appV|v)ersion: "
    r'|"@ign-service/client",\n *"version": "'
)


def versions(root: Path) -> set[tuple[str, str]]:
    """File and version of every place."""
    texts = {name: (root / name).read_text() for name in VERSIONED}
    return {
        (name, found)
        for name in texts
        for found in re.findall(rf'(?m)(?:{_BEFORE})([^"\n]+)', texts[name])
    }


@pytest.mark.parametrize(("version", "status"), [("10.9.8", 0), ("1.2", 2)])
def test_every_place_has_the_version_that_a_command_writes(
    version: str, status: int, tmp_path: Path
) -> None:
    assert versions(ROOT) == {(name, __version__) for name in VERSIONED}
    for name in (*VERSIONED, "Makefile", "sdk/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    stubs(tmp_path, "python", script="exit 0")
    done = make(tmp_path, f"--directory={tmp_path}", "version", f"VERSION={version}")
    assert (done.returncode, f"VERSION={version}: expected" in done.stderr) == (
        status,
        bool(status),
    )
    assert versions(tmp_path) == {(name, __version__ if status else version) for name in VERSIONED}


def stubs(venv: Path, *names: str, script: str) -> None:
    """An environment that `make` holds for complete, with programs that do what ``script`` says."""
    for stamp in (".made", ".installed-cpu-serve", ".installed-cpu-develop"):
        (venv / stamp).touch()
    (venv / "bin").mkdir()
    for name in names:
        (venv / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (venv / "bin" / name).chmod(0o755)


def make(venv: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = ("make", "--silent", f"VENV={venv}", *arguments)
    return run(*command, MAKEFLAGS="", MAKELEVEL="", ARGS="", **variables)


def test_the_environment_passes_through_make_run(tmp_path: Path) -> None:
    stubs(tmp_path, "python", script='echo "$* on port $IGN_PORT"')
    done = make(tmp_path, "run", IGN_PORT="9000")
    assert done.stdout.split() == ["-m", "service", "on", "port", "9000"]


# The health check


HTTP = b"HTTP/1.0 %s X\r\n\r\n"


@contextmanager
def answering(reply: bytes | None) -> Iterator[int]:
    """A free port on which a server sends these bytes to one client; with None none, with an empty
    reply no server.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def serve(data: bytes) -> None:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(4096).startswith(b"GET /readyz ")
                connection.sendall(data)

        if reply:
            pool.submit(serve, reply)
        elif reply is not None:
            listener.close()
        yield listener.getsockname()[1] if listener.fileno() >= 0 else 1


@pytest.mark.parametrize(
    ("host", "reply", "code", "text"),
    [
        *((host, HTTP % b"200", 0, "") for host in ("0.0.0.0", "127.0.0.1", "")),
        (
            None,
            HTTP % b"503" + b'{"detail":\n "models are being loaded"}',
            1,
            "503: (?s:.*)models are being loaded",
        ),
        *((None, reply, 1, "no answer: ") for reply in (b"SSH-2.0-nothing\r\n", None, b"")),
    ],
)
def test_the_health_check_says_why_not(
    host: str | None, reply: bytes | None, code: int, text: str
) -> None:
    with answering(reply) as port:
        env = {"IGN_PORT": str(port)} | ({} if host is None else {"IGN_HOST": host})
        command = [sys.executable, "-I", str(ROOT / "docker" / "healthcheck.py")]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=1800, check=False
        )
    assert (done.returncode, done.stderr) == (code, "")
    assert re.match(text, done.stdout)
    assert bool(done.stdout) is bool(code)
