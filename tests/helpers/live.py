"""The real service as the process an operator starts, for tests that need one."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.harness import processes as servers
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
def live_service(*command: str | Path, cwd: str | Path = ROOT, **settings: str) -> Iterator[str]:
    """Run `python -m service`, or ``command``, until the block ends; it has to stop with status 0.

    Yields the base URL, once the service is ready. ``settings`` are `IGN_…` variables, of which
    `IGN_PORT` is by default a free port; without any, the shipped models are served.
    """
    settings = {"IGN_PORT": f"{free_port()}", "IGN_WORKERS": "1"} | settings
    with servers.serving(
        [*map(str, command)] or [sys.executable, "-m", "service"],
        port=int(settings["IGN_PORT"]),
        ready="/readyz",
        environ=environment(**{"IGN_REQUEST_TIMEOUT_S": "600"} | settings),
        cwd=cwd,
        start_s=START_S,
    ) as server:
        yield f"http://127.0.0.1:{server.port}"
    assert server.status == 0, "the service did not stop cleanly"


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
