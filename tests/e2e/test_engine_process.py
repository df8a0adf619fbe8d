"""`IGN_ENGINE_PROCESS` as operators know it: several serving processes, one engine, and the death of either."""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.contract.harness import problem
from tests.e2e.test_process import ENDLESS, EVENTS, LONG, Process, listeners, refused, running, served_until, workers_of
from tests.helpers.onnx_models import write_model

pytestmark = pytest.mark.skipif(not hasattr(os, "eventfd"), reason="needs Linux")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    write_model(tmp_path)
    return {"IGN_MODEL_DIR": str(tmp_path), "IGN_WORKERS": "2", "IGN_ENGINE_PROCESS": "true"}


@pytest.fixture
def process(environ: dict[str, str]) -> Iterator[Process]:
    with running(environ) as process:
        served_until(process, lambda: listeners(process) == 2)
        yield process


def ends(pid: int) -> None:
    """Kill a process, and wait until the parent has reaped it."""
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists():
        pass


def everywhere(process: Process, condition: Callable[[Process], bool]) -> None:
    """New connections, which both processes get, agree for a while."""
    agreed = 0
    while agreed < 16:
        agreed = agreed + 1 if condition(process) else 0


def test_an_engine_that_dies_is_replaced_and_nothing_hangs(process: Process) -> None:
    engine, *fronts = workers_of(process)
    statuses: list[int] = []
    stopping = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=30) as client:
            while not stopping.is_set():
                response = client.post(process.url + "/generate", json={"steps": 1000})
                statuses.append(response.status_code)
                if response.status_code != 200:
                    problem(response, 503, "not_ready")
                    assert int(response.headers["Retry-After"]) >= 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while statuses.count(200) < 8:
        pass
    ends(engine)
    process.until(503)
    assert process.get("/healthz").status_code == 200
    process.until(200)
    everywhere(process, lambda process: process.get("/readyz").status_code == 200)
    stopping.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert set(statuses) == {200, 503}
    assert workers_of(process)[:2] == fronts
    assert process.post({"seed": 1}).status_code == 200
    metrics = process.get("/metrics").text
    assert metrics.count("ign_model_info{") == 1
    assert "ign_queue_limit_rows 4096.0" in metrics
    process.terminate()
    status, said = process.ended()
    assert status == 0
    assert f"engine {engine} ended with status -9 and is restarted" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_serving_process_that_dies_is_replaced(process: Process) -> None:
    engine, dead, alive = workers_of(process)
    with (
        suppress(httpx.TransportError),
        process.client.stream("POST", process.url + "/generate", json=LONG, headers=EVENTS),
    ):
        ends(dead)  # the stream may be its
    served_until(process, lambda: dead not in workers_of(process) and listeners(process) == 2)
    assert {engine, alive} < set(workers_of(process))
    while 'ign_queue_rows{model="toy/1"} 0.0' not in process.get("/metrics").text:
        pass


@pytest.mark.slow
def test_a_model_loads_and_unloads_in_every_process(process: Process, environ: dict[str, str]) -> None:
    directory = Path(environ["IGN_MODEL_DIR"])
    write_model(directory, "other")
    with httpx.Client(base_url=process.url, timeout=30) as client:
        assert "model_repository" in client.get("/v2").json()["extensions"]
        assert client.post("/v2/repository/models/other/load").status_code == 200
        everywhere(process, lambda process: process.get("/models/other").status_code == 200)
        assert client.post("/v2/repository/models/other/unload").status_code == 200
        everywhere(process, lambda process: process.get("/models/other").status_code == 404)
        shutil.rmtree(directory / "other")
        assert client.post("/v2/repository/models/other/load").status_code == 404


def interrupt_the_group(process: Process) -> None:
    """As Ctrl-C in a terminal."""
    os.killpg(process.popen.pid, signal.SIGINT)


def terminate_all(process: Process) -> None:
    """As systemd does; the parent, which passes the signal on, may be the last."""
    for pid in workers_of(process):
        os.kill(pid, signal.SIGTERM)
    process.until(503)
    process.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [interrupt_the_group, terminate_all])
def test_a_stop_finishes_what_was_accepted(environ: dict[str, str], stop: Callable[[Process], None]) -> None:
    with running(environ | {"IGN_DRAIN_S": "120"}) as process, httpx.Client(timeout=120) as client:
        with client.stream("POST", process.url + "/generate", json=LONG, headers=EVENTS) as response:
            lines = response.iter_lines()
            assert next(lines) == "event: step"
            stop(process)
            assert "event: done" in list(lines)
        status, said = process.ended()
        assert status == 0
        assert "Traceback" not in said


@pytest.mark.slow
def test_a_second_signal_ends_what_runs(environ: dict[str, str]) -> None:
    with running(environ | {"IGN_DRAIN_S": "120"}) as process, httpx.Client(timeout=120) as client:
        with client.stream("POST", process.url + "/generate", json=ENDLESS, headers=EVENTS) as response:
            lines = response.iter_lines()
            assert next(lines) == "event: step"
            process.terminate()
            process.until(503)
            process.terminate()
            assert "event: error" in list(lines)
        assert process.ended()[0] == 0


@pytest.mark.slow
def test_all_leave_with_their_parent(process: Process) -> None:
    pids = workers_of(process)
    process.popen.kill()
    process.popen.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        pass


@pytest.mark.slow
def test_an_engine_that_refuses_to_start_stops_all(environ: dict[str, str]) -> None:
    assert "nope: not there; there is toy/1" in refused(environ | {"IGN_DEFAULT_MODEL": "nope"})


def test_traces_are_refused(environ: dict[str, str]) -> None:
    assert "IGN_ENGINE_PROCESS=true makes no traces" in refused(environ | {"OTEL_TRACES_EXPORTER": "console"})
