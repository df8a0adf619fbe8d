"""One contestant's turn: start its server, hold its answers to this service's, put load on it, stop it.

    python -m benchmarks.peers.one_run < ORDER.json        # the fields of `Order`; prints a report

It is a process of its own, so that it can have a network and processes of its own: `take` gives it both where it may.
Whatever a server leaves behind ends with it then, and nobody else can reach the ports it opens.
"""

import base64
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, cast

import numpy as np
from PIL import Image

from benchmarks.harness.common import Json, rounded
from benchmarks.harness.processes import HOST, ROOT, Server, ServerFailed, free_port, rss_mib, serving
from benchmarks.load_generator.load import measure
from benchmarks.load_generator.spec import Spec
from benchmarks.peers.payloads import PNG, Wire
from benchmarks.peers.servers import Batching, Entry, command, environment

_AT_ONCE: Final = 16  # while answers are checked, so that batches are formed
_CLOSE: Final = 1e-5  # of floats: two releases of onnxruntime may differ in the last bits
_ANSWER_S: Final = 60.0
_STOP_S: Final = 20.0
_APART: Final = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_LOOPBACK: Final = ("sh", "-c", 'ip link set lo up && exec "$@"', "sh")


class Refused(Exception):
    """A contestant does not serve, or serves something else; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to do.

    Args:
        name, processes: the entry.
        rows, wait_ms: how it forms batches.
        python: interpreter of its environment.
        models, model: directory, and `name/version` within.
        bodies: by payload, what is sent, in base64.
        expected: by payload, what has to come back; empty: the answers are reported instead.
        connections: numbers of connections, one load each.
        seconds, warmup_s: of each load.
        server_cpus, client_cpus: where they may run.
        start_s: patience with its start.
    """

    name: str
    processes: int
    rows: int
    wait_ms: int
    python: str
    models: str
    model: str
    bodies: Mapping[str, Sequence[str]]
    expected: Mapping[str, Sequence[str]]
    connections: Sequence[int]
    seconds: float
    warmup_s: float
    server_cpus: Sequence[int]
    client_cpus: Sequence[int]
    start_s: float = 120.0


def take(order: Order) -> Json:
    """Have the turn taken by a process of its own; returns its report, or `{"failed": why}`."""
    entry = Entry(name=order.name, processes=order.processes)
    if entry.contestant.alone and not apart():
        return {"failed": "needs a network of its own, and `unshare` may not make one here"}
    prefix = apart()
    loads = len(order.connections) * len(order.bodies)
    limit = order.start_s + loads * (order.seconds + order.warmup_s + 45) + 2 * _ANSWER_S + 60
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "benchmarks.peers.one_run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        out, err = process.communicate(json.dumps(asdict(order)), limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {limit:.0f} s"}
    finally:
        _end(process)
    if process.returncode != 0:
        return {"failed": f"the turn ended with status {process.returncode}: {err[-2000:]}"}
    return cast(Json, json.loads(out))


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()  # it stops its server then
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@cache
def apart() -> tuple[str, ...]:
    """What goes before a command that is to have network and processes of its own; nothing where that may not be."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return ()
    for prefix in (_APART, (*_APART, "--map-root-user")):
        tried = subprocess.run([*prefix, *_LOOPBACK, "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return (*prefix, *_LOOPBACK)
    return ()


def turn(order: Order) -> Json:
    """Take the turn in this process."""
    entry = Entry(name=order.name, processes=order.processes)
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("IGN_", "PEER_"))}
    own = environment(entry, Batching(rows=order.rows, wait_ms=order.wait_ms), port, Path(order.models), order.model)
    start = time.perf_counter()
    try:
        with (
            TemporaryDirectory() as folder,  # in which they leave what they leave
            on(order.server_cpus),
            serving(
                command(entry.contestant, order.python),
                port=port,
                ready=entry.contestant.ready,
                environ=inherited | _at_home(folder) | own,
                cwd=Path(folder),
                start_s=order.start_s,
                stop_s=10.0,
            ) as server,
            on(order.client_cpus),
        ):
            return _loads(order, entry, server, start)
    except (ServerFailed, Refused, OSError, http.client.HTTPException) as exc:
        return {"failed": str(exc)}


def _at_home(folder: str) -> dict[str, str]:
    """Variables that keep a server's files in this folder, and its habits to itself."""
    return {
        "PYTHONPATH": str(ROOT),
        "HOME": folder,
        "TMPDIR": folder,
        "ORT_DISABLE_TELEMETRY": "1",
    }


def _loads(order: Order, entry: Entry, server: Server, start: float) -> Json:
    bodies = {payload: [base64.b64decode(body) for body in found] for payload, found in order.bodies.items()}
    report: Json = {"wires": {}, "loads": {}}
    wires = {}
    for payload, sent in bodies.items():
        wires[payload] = wire = first_that_answers(entry.contestant.wires[payload], server.port, sent[0], order.start_s)
        report["wires"][payload] = wire.says
        if payload == next(iter(bodies)):
            report["start_s"] = rounded(time.perf_counter() - start)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = list(pool.map(lambda body, wire=wire: ask(server.port, wire, body)[1], sent))
        if order.expected:
            compare(payload, answers, [base64.b64decode(body) for body in order.expected[payload]])
        else:
            report.setdefault("answers", {})[payload] = [base64.b64encode(body).decode() for body in answers]
    for payload, wire in wires.items():
        requests = [wire.ask(body) for body in bodies[payload]]
        report["loads"][payload] = {
            str(connections): measure(
                Spec(
                    port=server.port,
                    requests=requests,
                    connections=connections,
                    seconds=order.seconds,
                    warmup_s=order.warmup_s,
                    server_pid=server.pid,
                )
            )
            for connections in order.connections
        }
    report["memory_mib"] = rounded(rss_mib(server.pid))
    return report


def first_that_answers(wires: Sequence[Wire], port: int, body: bytes, patience_s: float) -> Wire:
    """The first way that is answered with 200; 404 and 5xx may mean that a server is not ready yet.

    Raises:
        Refused: none is.
    """
    deadline = time.monotonic() + patience_s
    while True:
        said = []
        for wire in wires:
            status, answer = ask(port, wire, body)
            if status == 200:
                return wire
            said.append(f"{status} {answer[:300]!r} to {wire.says}")
        if time.monotonic() > deadline or not any(text.startswith(("404", "5")) for text in said):
            raise Refused("; ".join(said))
        time.sleep(0.2)


def ask(port: int, wire: Wire, body: bytes) -> tuple[int, bytes]:
    """Send one body on a connection of its own; the status and, of a 200, the body that came back."""
    with socket.create_connection((HOST, port), _ANSWER_S) as connection:
        connection.sendall(wire.ask(body))
        answer = http.client.HTTPResponse(connection, method="POST")
        answer.begin()
        content = answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
    return answer.status, wire.read(headers, content) if answer.status == 200 else content


def compare(payload: str, answers: Sequence[bytes], expected: Sequence[bytes]) -> None:
    """Hold answers to what has to come back: PNGs to the same pixels, floats to the same values but for last bits.

    Raises:
        Refused: they differ.
    """
    for number, (answer, wanted) in enumerate(zip(answers, expected, strict=True)):
        try:
            found, right = _values(payload, answer), _values(payload, wanted)
        except (OSError, ValueError) as exc:
            raise Refused(f"{payload} {number}: {answer[:100]!r} is none: {exc}") from exc
        if found.shape != right.shape or not np.allclose(found, right, rtol=0, atol=0 if payload == PNG else _CLOSE):
            raise Refused(f"{payload} {number}: the answer is another picture than this service's")


def _values(payload: str, body: bytes) -> "np.ndarray[Any, np.dtype[np.float64]]":
    if payload == PNG:
        return np.asarray(Image.open(io.BytesIO(body), formats=("PNG",)), np.float64)
    return np.frombuffer(body, "<f4").astype(np.float64)


@contextmanager
def on(cpus: Sequence[int]) -> Iterator[None]:
    """Let this thread, and the processes it starts, run on these CPUs alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(json.dumps(turn(Order(**json.load(sys.stdin)))))
