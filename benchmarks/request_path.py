"""Count the files and calls of this service that one warm request enters, and what a gateway's
headers add.

    python -m benchmarks.request_path

The service runs in the main thread as `python -m service` starts it, with the shipped models and
one model thread. A client in a second thread warms it up and sends each request several times on
one connection. A profile hook in every thread records each call of a function in `service/` until
all threads wait again, but not a coroutine that continues after an `await`, and no comprehension.

The counts are the same on a busy machine. A timer calls functions now and then, so only the calls
that (nearly) every repetition made count: of each function the second-lowest number, because one
repetition may also be cut short.

    repetition     1  2  3  4  5
    respond        1  1  1  1  1   → 1
    close_idle     0  0  1  0  0   → 0: a timer
    write_log      1  1  1  0  1   → 1: the fourth repetition was cut short
"""

import contextlib
import http.client
import itertools
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
from collections import Counter
from types import CodeType, FrameType
from typing import Any, Final
from unittest.mock import patch

from benchmarks.harness.common import Json
from benchmarks.harness.processes import HOST, ROOT, free_port, without_settings
from benchmarks.load_generator.messages import (
    SENDERS,
    disc,
    get,
    post,
    post_form,
    with_headers,
)
from tests.helpers.pictures import save

REQUESTS: Final = {
    "POST /generate -> PNG": post("/generate", {"model": "mnist", "seed": 7}, "image/png"),
    "POST /project, multipart -> PNG": post_form(
        "/project", [("image", save(disc(size=28)))], "image/png"
    ),
}
_REPETITIONS: Final = 5
_QUIET_S: Final = 0.03  # without a call: all threads wait
_OWN: Final = str(ROOT / "service") + os.sep


class Recorder:
    """The calls of one request, by the code of the function."""

    def __init__(self) -> None:
        self.calls = Counter[CodeType]()

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        """The hook for `sys.setprofile`."""
        code = frame.f_code
        if (
            event != "call"
            or not code.co_filename.startswith(_OWN)
            or code.co_name.endswith("comp>")
        ):
            return
        # The argument of the instruction RESUME is 0 where a function starts, and another where it
        # continues.
        if not code.co_code[frame.f_lasti + 1] & 3:
            self.calls[code] += 1

    def until_quiet(self) -> "Counter[CodeType]":
        """The calls so far, as soon as there are no further ones."""
        count = -1
        while count != (count := self.calls.total()):
            time.sleep(_QUIET_S)
        return self.calls


def main() -> int:
    port = free_port()
    recorder = Recorder()
    environ = without_settings() | {
        "IGN_PORT": str(port),
        "IGN_THREADS": "1",
        "IGN_MODEL_DIR": str(ROOT / "models"),
    }
    client = threading.Thread(target=_client, args=(port, recorder))
    client.start()  # before the hook, which is for the service alone
    threading.setprofile(recorder.profile)
    sys.setprofile(recorder.profile)
    with patch.dict(os.environ, environ, clear=True), patch.object(sys, "argv", ["service"]):
        runpy.run_module("service", run_name="__main__")  # ends this process
    return 1


def _client(port: int, recorder: Recorder) -> None:
    try:
        with _connect(port) as connection:
            # a thread runs until it waits, so threads switch in the same places every time
            sys.setswitchinterval(10.0)
            reports = [
                _trace(connection, recorder, name, with_headers(data, headers), sender)
                for name, data in REQUESTS.items()
                for sender, headers in SENDERS.items()
            ]
        print(json.dumps(reports, indent=1), flush=True)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def _connect(port: int) -> socket.socket:
    """A connection to the service, once it is ready."""
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            connection = socket.create_connection((HOST, port), 30)
            if _status(connection, get("/readyz")) == 200:
                return connection
            connection.close()
        time.sleep(0.1)
    raise TimeoutError("the service does not become ready")


def _trace(
    connection: socket.socket, recorder: Recorder, name: str, data: bytes, sender: str
) -> Json:
    """Files in the order of their first call, calls by file, and totals."""
    repetitions: list[Counter[CodeType]] = []
    for _ in range(2 + _REPETITIONS):  # two warm it up
        recorder.until_quiet()
        recorder.calls = Counter()
        if _status(connection, data) != 200:
            raise RuntimeError(f"{name} with the headers of {sender} was not answered with 200")
        repetitions.append(recorder.until_quiet())
    calls = steady_calls(repetitions[2:])
    files = Counter[str]()
    for code, number in calls.items():
        files[code.co_filename.removeprefix(_OWN)] += number
    totals = {"file_count": len(files), "call_count": files.total()}
    return {"request": name, "headers": sender, **totals, "files": files}


def steady_calls(repetitions: "list[Counter[CodeType]]") -> "Counter[CodeType]":
    """The calls that all repetitions but one made: without those of timers."""
    functions = dict.fromkeys(itertools.chain(*repetitions))
    return +Counter({code: sorted(calls[code] for calls in repetitions)[1] for code in functions})


def _status(connection: socket.socket, data: bytes) -> int:
    connection.sendall(data)  # head and body in one segment: the service reads once
    with http.client.HTTPResponse(connection) as response:
        response.begin()
        response.read()
        return response.status


if __name__ == "__main__":
    sys.exit(main())
