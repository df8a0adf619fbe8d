"""What is shipped around the code: extras, wheels, `make run`, and the containers' health check on real sockets."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.live import ROOT, environment


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


HTTP = b"HTTP/1.0 %s X\r\n\r\n"


@contextmanager
def answering(reply: bytes | None) -> Iterator[int]:
    """A free port on which a server sends these bytes to one client; with None none, with an empty reply no server."""
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
        (None, HTTP % b"503" + b'{"detail":\n "models are being loaded"}', 1, "503: (?s:.*)models are being loaded"),
        *((None, reply, 1, "no answer: ") for reply in (b"SSH-2.0-nothing\r\n", None, b"")),
    ],
)
def test_the_health_check_says_why_not(host: str | None, reply: bytes | None, code: int, text: str) -> None:
    with answering(reply) as port:
        env = {"IGN_PORT": str(port)} | ({} if host is None else {"IGN_HOST": host})
        command = [sys.executable, "-I", str(ROOT / "docker" / "healthcheck.py")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert re.match(text, done.stdout)
    assert bool(done.stdout) is bool(code)
