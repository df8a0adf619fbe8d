"""Start and stop the servers under measurement, and read their CPU time and memory. Linux only
(`/proc`).
"""

import contextlib
import http.client
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
START_S = 120.0
STOP_S = 300.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


class ServerFailed(Exception):
    """A server did not start, or did not stop cleanly; the text ends with its last output."""


@dataclass
class ServerProcess:
    """A running server; ``status`` is its exit status after it stopped, None before."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path
    status: int | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def log_text(self) -> str:
        """Its stdout and stderr so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        with contextlib.closing(
            http.client.HTTPConnection(HOST, self.port, timeout=30.0)
        ) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows: a load may need thousands of
    connections.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def free_port() -> int:
    """A free TCP port of the loopback interface.

    The system gives no such port to a connection, so a server that starts again gets it again.
    """
    while True:
        port = secrets.choice(range(10_000, 32_768))
        with contextlib.suppress(OSError), socket.socket() as result:
            result.bind((HOST, port))
            return port


def without_settings() -> dict[str, str]:
    """The environment of this process without `IGN_…` settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("IGN_")}


@contextmanager
def service(
    settings: Mapping[str, str], module: Sequence[str] = ("service",)
) -> Iterator[ServerProcess]:
    """Run `python -m service` of this checkout, or another module, on a free port, with these
    `IGN_…` settings only.
    """
    port = free_port()
    environ = without_settings() | {"IGN_PORT": str(port)} | dict(settings)
    with serving(
        [sys.executable, "-m", *module], port=port, ready="/readyz", environ=environ
    ) as server:
        yield server
    if server.status != 0:
        raise ServerFailed(f"the service exited with status {server.status}")


@contextmanager
def serving(
    command: Sequence[str],
    *,
    port: int,
    ready: str,
    environ: Mapping[str, str] | None = None,
    cwd: str | Path = ROOT,
    start_s: float = START_S,
) -> Iterator[ServerProcess]:
    """Run a server until the block ends, then stop it: SIGTERM, after `STOP_S` SIGKILL to its
    process group.

    ``ready`` is a path that gets 200 when the server is ready. ``environ`` is by default that of
    this process.
    """
    with tempfile.NamedTemporaryFile() as output:
        process = subprocess.Popen(
            command,
            env=environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        server = ServerProcess(process, port, Path(output.name))
        try:
            _await_ready(server, ready, start_s)
            yield server
        finally:
            server.status = _stop(process)


def _await_ready(server: ServerProcess, path: str, start_s: float) -> None:
    deadline = time.monotonic() + start_s
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if server.get(path)[0] == 200:
                return
        time.sleep(0.05)
    raise ServerFailed(
        f"the server is not ready, exit status {server.process.poll()}:\n"
        f"{server.log_text()[-2000:]}"
    )


def _stop(process: "subprocess.Popen[bytes]") -> int:
    process.terminate()
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL
    finally:
        with contextlib.suppress(ProcessLookupError):  # its children too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stat(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` after the process name (which may contain spaces): state,
    parent, …
    """
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def process_tree(pid: int) -> list[int]:
    """The pids of a process and its living descendants."""
    parents: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parents.setdefault(int(stat(int(entry))[1]), []).append(int(entry))
    result = [pid]
    for each in result:
        result += parents.get(each, [])
    return result


def serving_processes(pid: int) -> list[int]:
    """The serving processes below the first one, without those that only keep resources."""
    serving = list[int]()
    for each in process_tree(pid)[1:]:
        with contextlib.suppress(OSError):  # it has just ended
            if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes():
                serving.append(each)
    return serving


def listening_sockets(port: int) -> int:
    """The sockets that accept connections on a port: one for each process that is ready."""
    sockets = [
        line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    ]
    return sum(fields[1].endswith(f":{port:04X}") and fields[3] == "0A" for fields in sockets)


def of_tree(pid: int, measure: Callable[[int], float]) -> float:
    """The sum of what is measured of a process and its living descendants."""
    total = 0.0
    for each in process_tree(pid):
        with contextlib.suppress(OSError):  # it has just ended
            total += measure(each)
    return total


def cpu_seconds(pid: int) -> float:
    """CPU time (user and system) of a process and its living descendants, with the resolution of a
    clock tick.
    """
    return of_tree(pid, lambda each: sum(map(int, stat(each)[11:13]))) * _TICK_S


def rss_mib(pid: int) -> float:
    """Resident memory of a process and its living descendants; shared pages count once per
    process.
    """
    pages = of_tree(pid, lambda each: int(Path(f"/proc/{each}/statm").read_text().split()[1]))
    return pages * _PAGE_MIB


@contextmanager
def memory_samples(pid: int, every_s: float) -> Iterator[list[tuple[float, float]]]:
    """Sample a server's resident memory during a block: (seconds since the start, MiB)."""
    samples = list[tuple[float, float]]()
    end = threading.Event()
    start = time.monotonic()

    def follow() -> None:
        while True:
            samples.append((time.monotonic() - start, rss_mib(pid)))
            if end.wait(every_s):
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        end.set()
        thread.join()
