"""Count the Python calls of this service that one warm request causes, by file, and the thread switches.

    python -m benchmarks.request_path [--json]

The service runs in the main thread as `python -m service` starts it, with its own HTTP protocol, the shipped models and
one model thread, so the counts are the same on every machine. A client in a second thread warms the service up and
sends the request. A profile hook in every thread records each call of a function in `service/` from the first byte read
to the last byte written, but not a coroutine that continues after an `await`, and no comprehension. Then it counts the
calls of several requests that arrive together, divided by their number.
"""

import argparse
import contextlib
import http.client
import io
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final
from unittest.mock import patch

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from benchmarks.harness.common import Json
from benchmarks.harness.processes import HOST, ROOT, free_port
from benchmarks.harness.request_set import Request, disc, encoded, form, get, post
from benchmarks.harness.tables import table
from benchmarks.load_generator.spec import request as encode_request
from service.cli import serve
from service.server.write_coalescer import WriteCoalescer

REQUESTS: Final = (
    post("POST /generate -> PNG", "/generate", {"model": "mnist", "seed": 7}, "image/png"),
    form("POST /project, multipart -> PNG", "/project", [("image", encoded(disc(size=28)))], {}, "image/png"),
)
TOGETHER: Final = 16
_OWN: Final = str(ROOT / "service") + os.sep


class Recorder:
    """The calls of one request as (thread, file); ``end`` of them came before the last byte was written."""

    def __init__(self) -> None:
        self.calls, self.end, self.on = list[tuple[int, str]](), 0, False

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        """The hook for `sys.setprofile`."""
        code = frame.f_code
        if not self.on or event != "call" or not code.co_filename.startswith(_OWN) or code.co_name.endswith("comp>"):
            return
        # The argument of the instruction RESUME is 0 where a function starts, and another where it continues.
        if not code.co_code[frame.f_lasti + 1] & 3:
            self.calls.append((threading.get_ident(), code.co_filename.removeprefix(_OWN)))

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Trace this thread and all that start in the block."""
        send, write_now = RequestResponseCycle.send, WriteCoalescer.write_now

        async def counted_send(cycle: RequestResponseCycle, message: Any) -> None:
            await send(cycle, message)
            self.end = len(self.calls)

        def counted_write(transport: WriteCoalescer, data: bytes) -> None:
            write_now(transport, data)
            self.end = len(self.calls)

        threading.setprofile(self.profile)
        sys.setprofile(self.profile)
        try:
            with (
                patch.object(RequestResponseCycle, "send", counted_send),
                patch.object(WriteCoalescer, "write_now", counted_write),
            ):
                yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def report(self, request: str) -> Json:
        """Files in the order of their first call, calls by file, totals and thread switches."""
        calls = self.calls[: self.end]
        files = Counter(file for _, file in calls)
        return {
            "request": request,
            "files": [{"file": file, "calls": number} for file, number in files.items()],
            "file_count": len(files),
            "call_count": len(calls),
            "thread_switches": sum(a != b for (a, _), (b, _) in itertools.pairwise(calls)),
        }


def trace() -> list[Json]:
    """One report for each of `REQUESTS`; RuntimeError if the service does not start, or not answer with 200."""
    recorder, reports, port, log = Recorder(), list[Json](), free_port(), io.StringIO()
    settings = {"IGN_PORT": str(port), "IGN_THREADS": "1", "IGN_MODEL_DIR": str(ROOT / "models")}
    environ = {name: value for name, value in os.environ.items() if not name.startswith("IGN_")} | settings
    client = threading.Thread(target=_client, args=(port, recorder, reports))
    with patch.dict(os.environ, environ, clear=True), contextlib.redirect_stderr(log), recorder.installed():
        client.start()
        status = serve({})
    client.join()
    if status or len(reports) < len(REQUESTS):
        raise RuntimeError(f"the service did not answer:\n{log.getvalue()[-2000:]}")
    return reports


def _client(port: int, recorder: Recorder, reports: list[Json]) -> None:
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    deadline = time.monotonic() + 120.0
    while not _answers(connection, get("/readyz")) and time.monotonic() < deadline:
        time.sleep(0.1)
    for request in REQUESTS:
        for _ in range(10):  # warm up
            _answers(connection, request)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(10.0)  # a thread runs until it waits, so threads switch in the same places every time
        recorder.calls, recorder.on = [], True
        answered = _answers(connection, request)
        recorder.on = False
        sys.setswitchinterval(interval)
        if answered:
            report = recorder.report(request.name)
            reports.append(report | {"calls_together": _calls_together(port, recorder, request)})
    connection.close()
    os.kill(os.getpid(), signal.SIGTERM)


def _calls_together(port: int, recorder: Recorder, request: Request) -> int:
    """Calls of each of `TOGETHER` requests."""
    data = encode_request(request.path, request.body or b"", request.headers, method=request.method)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection((HOST, port), 30)) for _ in range(TOGETHER)]
        for is_measured in (False, True):
            interval = sys.getswitchinterval()
            sys.setswitchinterval(10.0)
            recorder.calls, recorder.on = [], is_measured
            for each in sockets:
                each.sendall(data)
            for each in sockets:
                each.recv(1 << 16)
            recorder.on = False
            sys.setswitchinterval(interval)
            time.sleep(0.1)
    return round(len(recorder.calls) / TOGETHER)


def _answers(connection: http.client.HTTPConnection, request: Request) -> bool:
    try:
        if connection.sock is None:
            connection.connect()
        # One segment: `HTTPConnection.request` sends head and body apart, and the service then reads once or twice.
        connection.sock.sendall(
            encode_request(request.path, request.body or b"", request.headers, method=request.method)
        )
        response = http.client.HTTPResponse(connection.sock, method=request.method)
        response.begin()
        response.read()
        time.sleep(0.05)  # until every thread waits again
        return response.status == 200
    except (OSError, http.client.HTTPException):
        connection.close()
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    as_json, reports = parser.parse_args().json, trace()
    if as_json:
        print(json.dumps(reports, indent=1))
        return 0
    for report in reports:
        totals = "{file_count} files, {call_count} calls, {thread_switches} thread switches".format(**report)
        totals += f"; {report['calls_together']} calls each, if {TOGETHER} arrive together"
        print(f"{report['request']}: {totals}\n\n{table(report['files'])}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
