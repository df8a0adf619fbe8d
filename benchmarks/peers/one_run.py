"""One run of one server: start it, compare its answers with those of this service, send load, stop it.

    python -m benchmarks.peers.one_run < ORDER.json        # the fields of `Order`; prints a report

It is a process of its own, with its own network and process namespaces where `unshare` may create them. All processes
of a server then end with the run, and nothing else can reach its ports.
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
from benchmarks.harness.processes import HOST, ROOT, ServerFailed, ServerProcess, free_port, rss_mib, serving
from benchmarks.load_generator.load import measure
from benchmarks.load_generator.spec import Spec
from benchmarks.peers.payloads import PNG, Protocol
from benchmarks.peers.servers import Batching, Entry, command, environment

_AT_ONCE: Final = 16  # requests at once while answers are compared, so that the server forms batches
_CLOSE: Final = 1e-5  # tolerance of floats: the last bits may differ between batch sizes
_ANSWER_S: Final = 60.0
_STOP_S: Final = 20.0
_APART: Final = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_LOOPBACK: Final = ("sh", "-c", 'ip link set lo up && exec "$@"', "sh")


class Refused(Exception):
    """A server does not answer, or answers something else; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The description of one run.

    Args:
        name, processes: of the entry.
        rows, wait_ms: its batching.
        python: the interpreter of its environment.
        models, model: model directory, and `name/version` in it.
        bodies: the request bodies by payload, in base64.
        expected: the expected answers by payload; if empty, the answers are in the report instead.
        connections: numbers of connections, one load each.
        seconds, warmup_s: of each load.
        server_cpus, client_cpus: their CPUs.
        start_s: seconds to wait for its start.
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


def run_in_subprocess(order: Order) -> Json:
    """Run it in a process of its own; returns its report, or `{"failed": reason}`."""
    entry = Entry(name=order.name, processes=order.processes)
    if entry.server_spec.alone and not namespace_prefix():
        return {"failed": "needs its own network namespace, which `unshare` may not create here"}
    prefix = namespace_prefix()
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
        return {"failed": f"did not end within {limit:.0f} s"}
    finally:
        _end(process)
    if process.returncode != 0:
        return {"failed": f"the run exited with status {process.returncode}: {err[-2000:]}"}
    return cast(Json, json.loads(out))


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()  # it stops its server
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@cache
def namespace_prefix() -> tuple[str, ...]:
    """The command prefix for own network and process namespaces; empty where they are not allowed."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return ()
    for prefix in (_APART, (*_APART, "--map-root-user")):
        tried = subprocess.run([*prefix, *_LOOPBACK, "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return (*prefix, *_LOOPBACK)
    return ()


def run_here(order: Order) -> Json:
    """Run it in this process."""
    entry = Entry(name=order.name, processes=order.processes)
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("IGN_", "PEER_"))}
    own = environment(entry, Batching(rows=order.rows, wait_ms=order.wait_ms), port, Path(order.models), order.model)
    start = time.perf_counter()
    try:
        with (
            TemporaryDirectory() as folder,  # for files of the server
            pinned(order.server_cpus),
            serving(
                command(entry.server_spec, order.python),
                port=port,
                ready=entry.server_spec.ready,
                environ=inherited | _private_folders(folder) | own,
                cwd=Path(folder),
                start_s=order.start_s,
                stop_s=10.0,
            ) as server,
            pinned(order.client_cpus),
        ):
            return _loads(order, entry, server, start)
    except (ServerFailed, Refused, OSError, http.client.HTTPException) as exc:
        return {"failed": str(exc)}


def _private_folders(folder: str) -> dict[str, str]:
    """Variables that keep the files of a server in this folder, and turn telemetry off."""
    return {
        "PYTHONPATH": str(ROOT),
        "HOME": folder,
        "TMPDIR": folder,
        "ORT_DISABLE_TELEMETRY": "1",
    }


def _loads(order: Order, entry: Entry, server: ServerProcess, start: float) -> Json:
    bodies = {payload: [base64.b64decode(body) for body in result] for payload, result in order.bodies.items()}
    report: Json = {"wires": {}, "loads": {}}
    protocols = {}
    for payload, sent in bodies.items():
        protocols[payload] = protocol = first_accepted(
            entry.server_spec.protocols[payload], server.port, sent[0], order.start_s
        )
        report["wires"][payload] = protocol.title
        if payload == next(iter(bodies)):
            report["start_s"] = rounded(time.perf_counter() - start)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = list(pool.map(lambda body, protocol=protocol: send_one(server.port, protocol, body)[1], sent))
        if order.expected:
            compare(payload, answers, [base64.b64decode(body) for body in order.expected[payload]])
        else:
            report.setdefault("answers", {})[payload] = [base64.b64encode(body).decode() for body in answers]
    for payload, protocol in protocols.items():
        requests = [protocol.encode(body) for body in bodies[payload]]
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


def first_accepted(protocols: Sequence[Protocol], port: int, body: bytes, timeout_s: float) -> Protocol:
    """The first protocol that is answered with 200; retries after 404 and 5xx, as the server may not be ready.

    Raises:
        Refused: no protocol is answered with 200.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        said = []
        for protocol in protocols:
            status, answer = send_one(port, protocol, body)
            if status == 200:
                return protocol
            said.append(f"{status} {answer[:300]!r} to {protocol.title}")
        if time.monotonic() > deadline or not any(text.startswith(("404", "5")) for text in said):
            raise Refused("; ".join(said))
        time.sleep(0.2)


def send_one(port: int, protocol: Protocol, body: bytes) -> tuple[int, bytes]:
    """Send one body on a new connection; returns the status and, of a 200, the body of the answer."""
    with socket.create_connection((HOST, port), _ANSWER_S) as connection:
        connection.sendall(protocol.encode(body))
        answer = http.client.HTTPResponse(connection, method="POST")
        answer.begin()
        content = answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
    return answer.status, protocol.decode(headers, content) if answer.status == 200 else content


def compare(payload: str, answers: Sequence[bytes], expected: Sequence[bytes]) -> None:
    """Compare answers with the expected ones: PNGs by pixels, floats within `_CLOSE`.

    Raises:
        Refused: an answer differs.
    """
    for number, (answer, wanted) in enumerate(zip(answers, expected, strict=True)):
        try:
            result, right = _values(payload, answer), _values(payload, wanted)
        except (OSError, ValueError) as exc:
            raise Refused(f"{payload} {number}: {answer[:100]!r} cannot be decoded: {exc}") from exc
        if result.shape != right.shape or not np.allclose(result, right, rtol=0, atol=0 if payload == PNG else _CLOSE):
            raise Refused(f"{payload} {number}: the answer differs from that of this service")


def _values(payload: str, body: bytes) -> "np.ndarray[Any, np.dtype[np.float64]]":
    if payload == PNG:
        return np.asarray(Image.open(io.BytesIO(body), formats=("PNG",)), np.float64)
    return np.frombuffer(body, "<f4").astype(np.float64)


@contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Pin this thread, and the processes it starts, to these CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(json.dumps(run_here(Order(**json.load(sys.stdin)))))
