"""`python -m service` as its operators know it: a process, signals, exit status, and its lines on
stderr.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import onnxruntime
import pytest

from benchmarks.harness.processes import listening_sockets, serving_processes
from tests.contract.harness import PATIENCE_S, problem
from tests.helpers.live import environment, free_port
from tests.helpers.onnx_models import write_model

ENDLESS = {"n": 64, "steps": 300_000, "record": [0]}  # half a minute at least
LONG = {"steps": 100_000, "record": [0]}  # about a second
ONE = {"IGN_WORKERS": "1"}
TWO = {"IGN_WORKERS": "2"}


def pause() -> None:
    """Between two looks at a process, which needs the CPU meanwhile."""
    time.sleep(0.02)


def new_client() -> httpx.Client:
    """A client with a new connection for each request."""
    return httpx.Client(timeout=PATIENCE_S, limits=httpx.Limits(max_keepalive_connections=0))


@dataclass
class Process:
    popen: "subprocess.Popen[str]"
    url: str = ""
    client: httpx.Client = field(default_factory=new_client)

    @property
    def port(self) -> int:
        return httpx.URL(self.url).port or 0

    def get(self, path: str) -> httpx.Response:
        return self.client.get(self.url + path)

    def post(self, body: Mapping[str, object]) -> httpx.Response:
        return self.client.post(self.url + "/generate", json=body)

    @contextmanager
    def stream(self, body: Mapping[str, object]) -> Iterator[Iterator[str]]:
        """The lines of an event stream, after the first."""
        headers = {"Accept": "text/event-stream"}
        with (
            httpx.Client(timeout=PATIENCE_S) as client,
            client.stream("POST", self.url + "/generate", json=body, headers=headers) as response,
        ):
            lines = response.iter_lines()
            assert next(lines) == "event: step"
            yield lines

    def first(self, path: str) -> int:
        """The status of a path, as soon as a process listens."""
        while True:
            with suppress(httpx.ConnectError):
                return self.get(path).status_code
            pause()

    def until(self, status: int) -> None:
        while self.get("/readyz").status_code != status:
            pause()

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def ended(self) -> str:
        """The rest of its log, once it has ended well."""
        _, said = self.popen.communicate(timeout=PATIENCE_S)
        assert self.popen.returncode == 0, said
        assert "Traceback" not in said
        return said


def address_of(popen: "subprocess.Popen[str]") -> str:
    """Where it says it listens."""
    assert popen.stderr is not None
    for line in popen.stderr:
        if found := re.search(r"listening on (http://\S+:[1-9][0-9]*)", line):
            return found[1]
    raise AssertionError("it never said where it listens")


@contextmanager
def started(environ: Mapping[str, str], *command: str) -> Iterator[Process]:
    ours = {
        "IGN_PORT": "0",
        "IGN_DEFAULT_MODEL": "toy",
        "IGN_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    } | ONE
    popen = subprocess.Popen(
        command or (sys.executable, "-m", "service"),
        env=environment(**ours | dict(environ)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, which Ctrl-C would reach
    )
    try:
        yield Process(popen)
    finally:
        popen.kill()
        popen.communicate()


@contextmanager
def running(environ: Mapping[str, str], *command: str) -> Iterator[Process]:
    with started(environ, *command) as process:
        process.url = address_of(process.popen)
        process.until(200)
        yield process


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    write_model(directory)
    return directory


@pytest.fixture
def environ(models: Path) -> dict[str, str]:
    return {"IGN_MODEL_DIR": str(models)}


def test_it_starts_serves_and_stops(tmp_path: Path) -> None:
    for name in ("stamps", "faces"):
        write_model(tmp_path, name)
    with running({"IGN_MODEL_DIR": str(tmp_path), "IGN_DEFAULT_MODEL": ""}) as process:
        assert process.get("/healthz").status_code == 200
        assert process.get("/models").json()["default"] == "faces/1"  # without a default, the first
        response = process.post({"seed": 1})
        assert response.status_code == 200
        assert "Server" not in response.headers
        process.terminate()
        said = process.ended()
        assert "/generate 200" in said
        assert "WARNING" not in said


def test_json_logs(environ: dict[str, str]) -> None:
    with started(environ | {"IGN_MAX_BATCH_ROW": "1", "IGN_LOG_FORMAT": "json"}) as process:
        assert process.popen.stderr is not None
        lines = iter(process.popen.stderr)
        warning = json.loads(next(lines))
        assert (warning["level"], "IGN_MAX_BATCH_ROWS" in warning["message"]) == ("WARNING", True)
        assert any(
            "listening on http://127.0.0.1:" in json.loads(line)["message"] for line in lines
        )


def test_a_stop_lets_what_runs_finish_and_refuses_the_rest(environ: dict[str, str]) -> None:
    with running(environ | {"IGN_DRAIN_S": "120"}) as process:
        with process.stream(LONG) as lines:
            process.client.headers["X-Forwarded-For"] = "192.0.2.1"
            process.terminate()
            process.until(503)
            problem(process.post({}), 503, "draining")
            assert process.get("/healthz").status_code == 200
            assert "event: done" in list(lines)
        said = process.ended()
        assert "draining: 1 requests in flight" in said
        assert said.count("set IGN_TRUSTED_PROXIES") == 1


def test_what_does_not_finish_in_time_is_told(environ: dict[str, str]) -> None:
    with running(environ | {"IGN_DRAIN_S": "0.3"}) as process:
        with process.stream(ENDLESS) as lines:
            process.terminate()
            rest = list(lines)
        assert rest[-3] == "event: error"
        assert '"code":"draining"' in rest[-2]
        assert "cutting off 1 requests" in process.ended()


def damaged(tmp_path: Path) -> dict[str, str]:
    file = write_model(tmp_path) / "model.onnx"
    file.write_bytes(file.read_bytes()[:200])
    return {"IGN_MODEL_DIR": str(tmp_path)}


def damaged_beside(tmp_path: Path) -> dict[str, str]:
    (write_model(tmp_path, "other") / "golden.npz").unlink()
    write_model(tmp_path)
    return {"IGN_MODEL_DIR": str(tmp_path), "IGN_DEFAULT_MODEL": "toy"}


def setting(name: str, value: str) -> Callable[[Path], dict[str, str]]:
    def environ(tmp_path: Path) -> dict[str, str]:
        write_model(tmp_path)
        return {"IGN_MODEL_DIR": str(tmp_path), name: value}

    return environ


def rejected(environ: Mapping[str, str], *command: str) -> str:
    """The one line with which it does not start."""
    with started(environ, *command) as process:
        out, said = process.popen.communicate(timeout=PATIENCE_S)
        assert process.popen.returncode == 2, said
    assert out == ""
    assert "listening on" not in said
    # A process may say that it stops, because another one has not started.
    (line,) = [line for line in said.splitlines() if " INFO " not in line]
    assert line.startswith("ign-service does not start: ")
    return line


REFUSALS = [
    (setting("IGN_MODEL_DIR", "nowhere"), "nowhere: no such directory"),
    (damaged, "toy/1/model.onnx: not a model onnxruntime can load"),
    (setting("IGN_API_KEYS_FILE", "keys.json"), "keys.json: No such file"),
    (setting("IGN_PORT", "80a"), "IGN_PORT='80a' is not allowed"),
    (setting("IGN_DEFAULT_MODEL", "nope"), "IGN_DEFAULT_MODEL=nope: not there; there is toy/1"),
    (setting("IGN_HOST", "192.0.2.1"), "cannot listen on 192.0.2.1:0: Cannot assign requested"),
]
if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
    REFUSALS += [(setting("IGN_DEVICE", "cuda"), "toy/1/model.onnx: CUDA cannot be used")]
SERVE_EACH = """
import json, os, sys
from service.cli import serve
given = dict(os.environ)
for environ in json.load(sys.stdin):
    os.environ.update(given | environ)
    assert serve({}) == 2
    for name in environ:
        del os.environ[name]
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The line of each. One process tries them one after the other, since a start takes a
    second.
    """
    environs = [broken(tmp_path_factory.mktemp("models")) for broken, _ in REFUSALS]
    with started({}, sys.executable, "-c", SERVE_EACH) as process:
        _, said = process.popen.communicate(json.dumps(environs), timeout=PATIENCE_S)
        assert process.popen.returncode == 0, said
    lines = [line for line in said.splitlines() if " INFO " not in line]
    assert len(lines) == len(REFUSALS), said
    return lines


@pytest.mark.parametrize(("place", "said"), list(enumerate(said for _, said in REFUSALS)))
def test_refusals_to_start(refusals: list[str], place: int, said: str) -> None:
    assert refusals[place].startswith("ign-service does not start: ")
    assert said in refusals[place]


def test_a_check_refuses_every_version_that_fails(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "service", "--check")
    with started(damaged_beside(tmp_path), *command) as process:
        out, said = process.popen.communicate(timeout=PATIENCE_S)
    assert process.popen.returncode == 2
    assert out.startswith("toy/1: verified on cpu")
    assert "other/1/golden.npz: no such file" in said


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_busy_port(environ: dict[str, str], workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = rejected(environ | {"IGN_PORT": str(port), "IGN_WORKERS": workers})
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in line


STUCK = """
import threading, time
from service.cli import serve
from service.models.repository import Repository
from service.server.process import leave
{line}
leave(serve({{}}))
"""
BUSY_THREAD = "threading.Thread(target=time.sleep, args=(600,)).start()"
BUSY_EXECUTOR = "Repository.load_all = lambda _: time.sleep(600)"


@pytest.mark.parametrize("line", [BUSY_THREAD, pytest.param(BUSY_EXECUTOR, marks=pytest.mark.slow)])
# the second signal ends the drain
@pytest.mark.parametrize(("signals", "drain_s"), [(1, "1"), (100, "600")])
def test_it_ends_although_a_thread_does_not(
    environ: dict[str, str], line: str, signals: int, drain_s: str
) -> None:
    port = free_port()  # the startup line comes when the models are loaded
    changes = {"IGN_DRAIN_S": drain_s, "IGN_PORT": str(port)}
    with started(environ | changes, sys.executable, "-c", STUCK.format(line=line)) as process:
        process.url = f"http://127.0.0.1:{port}"
        assert process.first("/healthz") == 200
        end = time.monotonic() + PATIENCE_S
        while process.popen.poll() is None and time.monotonic() < end:
            if signals:
                signals -= 1
                process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.popen.wait(0.1)
        assert process.popen.returncode == 0


def test_a_log_that_nobody_reads_stops_nothing(environ: dict[str, str]) -> None:
    with (
        running(environ) as process,
        httpx.Client(base_url=process.url, timeout=PATIENCE_S) as client,
    ):
        for _ in range(600):  # more than 150 bytes each; a pipe holds 64 KiB, and nobody reads it
            assert client.get("/healthz", headers={"X-Request-ID": "x" * 100}).status_code == 200
        assert "ign_dropped_log_lines_total 0.0" in client.get("/metrics").text
        process.terminate()
        assert process.popen.wait(PATIENCE_S) == 0


def test_too_few_open_files_are_one_line(environ: dict[str, str]) -> None:
    said = rejected(environ, "sh", "-c", f"ulimit -n 20; exec {sys.executable} -m service")
    assert said.endswith("only 20 files may be open (ulimit -n); the service needs 64")


def test_the_soft_limit_of_open_files_is_raised(environ: dict[str, str]) -> None:
    command = f"ulimit -Sn 128; ulimit -Hn 512; exec {sys.executable} -m service"
    with running(environ | {"IGN_MAX_OPEN_CONNECTIONS": "1000"}, "sh", "-c", command) as process:
        metrics = process.get("/metrics").text
        assert "process_max_fds 512.0" in metrics
        assert "ign_open_connections_limit 256.0" in metrics


def served_until(process: Process, condition: Callable[[], bool]) -> None:
    """Ask, a connection each: no request is refused, neither until then nor right after."""
    while not condition():
        # connections that a killed one had not accepted are reset
        with suppress(httpx.TransportError):
            assert process.post({"seed": 1}).status_code == 200
        pause()
    for seed in range(8):
        assert process.post({"seed": seed}).status_code == 200


def replace(process: Process, dead: int) -> None:
    """Kill a server process, and wait for its replacement."""
    os.kill(dead, signal.SIGKILL)
    # Until all its threads have ended, its socket is open and gets connections. Then the parent
    # reaps it.
    while Path(f"/proc/{dead}").exists():
        pause()
    served_until(
        process,
        lambda: (
            dead not in serving_processes(process.popen.pid)
            and listening_sockets(process.port) == 2
        ),
    )


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
@pytest.mark.slow
class TestSeveralProcesses:
    def test_they_share_a_port_and_their_metrics_add_up(self, environ: dict[str, str]) -> None:
        with running(environ | TWO) as process:
            while (
                "ign_ready 1.0" not in (said := process.get("/metrics").text)
                or "limit_rows 4096.0" not in said
            ):
                pause()  # one of them has not begun yet, or loads
            for seed in range(8):  # a connection each: with one, only one of them would be asked
                assert process.post({"seed": seed}).status_code == 200
            expected = 'ign_requests_total{endpoint="/generate",model="toy/1",status="2xx"} 8.0'
            while expected not in (metrics := process.get("/metrics").text):
                pause()  # the text may be a second old
            assert 'ign_queue_rows{model="toy/1"} 0.0' in metrics
            assert metrics.count("ign_model_info{") == 1
            process.terminate()
            process.ended()

    def test_one_that_hangs_is_replaced_and_does_not_hold_up_the_end(
        self, environ: dict[str, str]
    ) -> None:
        with running(environ | TWO | {"IGN_DRAIN_S": "1"}) as process:
            served_until(process, lambda: listening_sockets(process.port) == 2)
            hung, alive = serving_processes(process.popen.pid)
            os.kill(hung, signal.SIGSTOP)
            while Path(f"/proc/{hung}").exists() or listening_sockets(process.port) < 2:
                pause()
            served_until(process, lambda: True)
            assert alive in serving_processes(process.popen.pid)
            metrics = process.get("/metrics").text
            assert 'ign_process_replacements_total{reason="hung"} 1.0' in metrics
            os.kill(alive, signal.SIGSTOP)
            process.terminate()
            assert process.popen.wait(PATIENCE_S) == signal.SIGKILL

    def test_a_process_that_loads_accepts_no_connection(self, environ: dict[str, str]) -> None:
        port = free_port()
        with started(environ | TWO | {"IGN_PORT": str(port)}) as process:
            process.url = f"http://127.0.0.1:{port}"
            assert process.first("/readyz") == 200
            assert address_of(process.popen) == process.url
            served_until(process, lambda: listening_sockets(process.port) == 2)

    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_the_port_of_a_service_that_loads_is_busy(
        self, environ: dict[str, str], workers: str
    ) -> None:
        port = free_port()
        with started(environ | TWO | {"IGN_PORT": str(port)}) as process:
            while len(loading := serving_processes(process.popen.pid)) < 2:
                pause()
            try:
                for pid in loading:
                    os.kill(pid, signal.SIGSTOP)
                line = rejected(environ | {"IGN_PORT": str(port), "IGN_WORKERS": workers})
            finally:
                process.popen.kill()
                for pid in loading:
                    os.kill(pid, signal.SIGKILL)
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in line

    def test_models_are_loaded_and_unloaded_in_all(self, tmp_path: Path) -> None:
        write_model(tmp_path)
        with running({"IGN_MODEL_DIR": str(tmp_path)} | TWO) as process:
            served_until(process, lambda: listening_sockets(process.port) == 2)

            def change(path: str) -> httpx.Response:
                return process.client.post(f"{process.url}/v2/repository/models/{path}")

            def statuses(ref: str) -> set[int]:
                """Of a connection each, so that both processes answer some."""
                return {process.get(f"/models/{ref}").status_code for _ in range(16)}

            problem(change("new/load"), 404, "unknown_model")
            write_model(tmp_path, "new")
            assert change("new/load").json() == {}
            assert statuses("new/1") == {200}
            damaged = write_model(tmp_path, "new", "2") / "model.onnx"
            damaged.write_bytes(damaged.read_bytes()[:200])
            assert "new/2" in problem(change("new/load"), 400, "load_failed").detail
            assert statuses("new/1") == {200}
            problem(change("toy/unload"), 400, "unload_refused")
            assert change("new/unload").json() == {}
            assert statuses("new") == {404}
            replace(process, serving_processes(process.popen.pid)[0])
            assert statuses("new") == {404}
            process.terminate()
            process.popen.communicate(timeout=PATIENCE_S)
            assert process.popen.returncode == 0

    def test_an_interrupt_of_the_process_group_drains(self, environ: dict[str, str]) -> None:
        """Ctrl-C in a terminal: the processes must not take it for a second signal."""
        with running(environ | TWO | {"IGN_DRAIN_S": "120"}) as process:
            # One that still starts ends without a line.
            served_until(process, lambda: listening_sockets(process.port) == 2)
            with process.stream(LONG) as lines:
                os.killpg(process.popen.pid, signal.SIGINT)
                assert "event: done" in list(lines)
            said = process.ended()
            assert len(set(re.findall(r" (\d+) INFO stopped", said))) == 2

    def test_they_leave_with_their_parent(self, environ: dict[str, str]) -> None:
        with running(environ | TWO) as process:
            children = serving_processes(process.popen.pid)
            process.popen.kill()
            process.popen.wait()
            while any(Path(f"/proc/{pid}").exists() for pid in children):
                pause()
