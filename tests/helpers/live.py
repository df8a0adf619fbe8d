"""The real service as the process an operator starts, for tests that need one."""

import os
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from benchmarks.harness.processes import ROOT as ROOT
from benchmarks.harness.processes import free_port as free_port

MODELS = ROOT / "models"
# Name → reference of the shipped models, such as "mnist" → "mnist/7", and those that make pictures
# of noise.
SHIPPED = {
    file.parts[-3]: "/".join(file.parts[-3:-1]) for file in sorted(MODELS.glob("*/*/model.onnx"))
}
GENERATORS = tuple(ref for name, ref in SHIPPED.items() if name != "scans")
START_S = 600.0
STOP_S = 300.0


def environment(**settings: str) -> dict[str, str]:
    """This process's environment, with ``settings`` in place of whatever `IGN_…` it holds."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("IGN_")}
    return {**inherited, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'sdk'}", **settings}


def run(
    *command: object, cwd: str | Path = ROOT, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """A command that has ended, in this `environment`."""
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=1800,
        check=False,
    )


@contextmanager
def live_service(*command: str | Path, cwd: str = ".", **settings: str) -> Iterator[str]:
    """Run `python -m service`, or ``command``, on a free port until the block ends; it has to stop
    with status 0.

    Yields the base URL, once the service is ready. ``settings`` are `IGN_…` variables; without any,
    the shipped models are served.
    """
    process = subprocess.Popen(
        command or [sys.executable, "-m", "service"],
        cwd=cwd,
        env=environment(
            **{"IGN_PORT": "0", "IGN_WORKERS": "1", "IGN_REQUEST_TIMEOUT_S": "600", **settings}
        ),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    log: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_follow, args=(process.stderr, log))
    reader.start()
    try:
        yield _ready(log)
        process.terminate()
        assert process.wait(STOP_S) == 0, "the service did not stop cleanly"
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


def until(
    condition: Callable[[], object], say: Callable[[], object], patience_s: float = 300.0
) -> None:
    """Wait until ``condition`` holds; fail with what ``say`` returns if it does not within
    ``patience_s``.
    """
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, say()
        time.sleep(0.05)  # between two looks at another process


def processes(title: bytes) -> set[int]:
    """Those with this in their command line; in a process namespace of our own there are none but
    ours.
    """
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if title in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


def certificate(folder: Path) -> Path:
    """Write `tls.crt`, for 127.0.0.1, and `tls.key` into ``folder``; the path of the
    certificate.
    """
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-subj /CN=localhost"
    )
    files = [
        "-keyout",
        f"{folder}/tls.key",
        "-out",
        f"{folder}/tls.crt",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    run(*command.split(), *files).check_returncode()
    return folder / "tls.crt"


def _follow(stream: IO[str], log: "queue.SimpleQueue[str | None]") -> None:
    """Pass the lines on, and go on reading for ever: a full pipe would stop the service."""
    for line in stream:
        log.put(line)
    log.put(None)


def _ready(log: "queue.SimpleQueue[str | None]") -> str:
    """The base URL, as soon as the log names it and `/readyz` agrees that the models serve."""
    said: list[str] = []
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        line = log.get(timeout=START_S)
        if line is None:
            break
        said.append(line)
        if " listening on " in line:
            base_url = line.rpartition(" ")[2].strip()
            if _answers(f"{base_url}/readyz"):
                return base_url
    raise AssertionError("the service did not start:\n" + "".join(said))


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            url, timeout=START_S
        ) as response:
            return bool(response.status == 200)
    except OSError:
        return False
