"""What is shipped around the code: extras, wheels, `make run`, and the containers' health check on real sockets."""

import importlib.util
import re
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
