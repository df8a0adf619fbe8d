"""`service.cli.serve` inside this process; `tests/e2e/test_process.py` starts it as one of its
own.
"""

import gc
import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
import uvicorn

from service import cli
from service.cli import serve
from service.domain.errors import StartupError
from service.domain.latents import FloatRows
from service.domain.model import DeviceLost
from service.runtime.onnx_model import OnnxModel
from service.server import process, uvicorn_server
from service.settings import Settings, from_environment
from tests.contract.harness import PATIENCE_S, problem
from tests.helpers.connection import Connection
from tests.helpers.onnx_models import write_model


class Said(logging.Handler):
    """The service's log, as it is written."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: queue.Queue[str] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.put(record.getMessage())

    def until(self, beginning: str) -> str:
        while True:
            message = self.messages.get(timeout=PATIENCE_S)
            if message.startswith(beginning):
                return message.removeprefix(beginning).partition(" ")[0]


@pytest.fixture(autouse=True)
def _own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`serve` configures logging, signals and the garbage collector for its process, which here is
    pytest's.
    """
    # A server that ends too slowly ends its process.
    monkeypatch.setattr(uvicorn_server, "_EXIT_GRACE_S", PATIENCE_S)
    for name in ("logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, getattr(logging, name))
    root = logging.getLogger()
    uvicorn_log = logging.getLogger("uvicorn")
    levels = (root.level, uvicorn_log.level)
    thresholds = gc.get_threshold()
    monkeypatch.setattr(root, "handlers", [])  # kept from being closed
    # A signal of a script that fails late must not end pytest.
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    for each in root.handlers:
        each.close()
    root.setLevel(levels[0])
    uvicorn_log.setLevel(levels[1])
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Said]:
    """What the logger says on levels from INFO; `ign serve --check`, in another test, leaves it on
    WARNING.
    """
    handler = Said()
    logger = logging.getLogger("service")
    caplog.set_level(logging.INFO, "service")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    write_model(tmp_path / "models")

    def configure(**settings: str) -> None:
        ours = {
            "MODEL_DIR": str(tmp_path / "models"),
            "DEFAULT_MODEL": "toy",
            "DEVICE": "cpu",
            "PORT": "0",
            "WORKERS": "1",
        }
        for name, value in (ours | settings).items():
            monkeypatch.setenv(f"IGN_{name}", value)

    return configure


def main_beside(script: Callable[[], None], main: Callable[[], int] = lambda: serve({})) -> int:
    """Run `main` here, where signals arrive, and the script in another thread, which must see to
    its end.
    """

    def run() -> None:
        try:
            script()
        except BaseException:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    with ThreadPoolExecutor(1) as pool:
        done: Future[None] = pool.submit(run)
        status = main()
        done.result(PATIENCE_S)
    return status


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def ready(url: str) -> None:
    while httpx.get(f"{url}/readyz", timeout=PATIENCE_S).status_code != 200:
        pass


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
POST = (
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    b"2\r\n\r\n{}"
)


def test_what_arrives_before_the_end_is_answered(
    configured: Callable[..., None], said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop is held up when it is about to close, as on a machine without free CPU
    time.
    """
    configured()
    at_end = threading.Event()
    go_on = threading.Event()
    on_tick = uvicorn.Server.on_tick

    async def held_up(server: uvicorn.Server, counter: int) -> bool:
        is_over = await on_tick(server, counter)
        if is_over:
            at_end.set()
            go_on.wait(PATIENCE_S)
        return is_over

    monkeypatch.setattr(uvicorn.Server, "on_tick", held_up)

    def script() -> None:
        url = httpx.URL(said.until("listening on "))
        ready(str(url))
        address = (url.host, url.port or 0)
        with ExitStack() as stack:
            # also if this fails: a process that stays held up is ended by force
            stack.callback(go_on.set)
            kept = [stack.enter_context(Connection(address)) for _ in range(4)]
            assert [one.send(HEALTH).answer()[0] for one in kept] == [200] * 4
            silent = [stack.enter_context(Connection(address)) for _ in range(4)]
            # so the others are accepted too
            assert httpx.get(f"{url}/healthz", timeout=PATIENCE_S).status_code == 200
            stop()
            assert at_end.wait(PATIENCE_S)
            new = [stack.enter_context(Connection(address)) for _ in range(64)]
            every = [one.send(POST) for one in (*kept, *silent, *new)]
            go_on.set()
            for status, headers, _ in [one.answer() for one in every]:
                assert status == 503
                assert headers["connection"] == "close"

    assert main_beside(script) == 0


def test_the_delay_keeps_it_up(configured: Callable[..., None], said: Said) -> None:
    configured(DRAIN_S="600", DRAIN_DELAY_S="300")  # a second signal ends it

    def script() -> None:
        url = said.until("listening on ")
        ready(url)
        stop()
        said.until("draining: ")
        for _ in range(3):  # a client each, so a connection each: the listener is still there
            assert httpx.get(f"{url}/readyz", timeout=PATIENCE_S).status_code == 503
        response = httpx.post(f"{url}/generate", json={"seed": 1}, timeout=PATIENCE_S)
        assert (response.status_code, response.headers["Connection"]) == (200, "close")
        stop()
        said.until("cutting off ")

    assert main_beside(script) == 0


def test_a_parent_that_reads_no_beats_stops_nothing(configured: Callable[..., None]) -> None:
    configured()
    beats, messages = Pipe()
    beats.send(set())
    os.set_blocking(messages.fileno(), False)
    with suppress(BlockingIOError):
        while True:
            messages.send(None)
    os.set_blocking(messages.fileno(), True)
    with uvicorn_server.bind("127.0.0.1", 0, shared=True) as bound, beats, messages:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"

        def script() -> None:
            while True:
                with suppress(httpx.ConnectError):
                    assert httpx.get(f"{url}/healthz", timeout=PATIENCE_S).status_code == 200
                    return stop()

        assert (
            main_beside(script, lambda: process.run_server(from_environment({}), bound, messages))
            == 0
        )


def test_ipv6(said: Said) -> None:
    try:
        listener = uvicorn_server.bind("::1", 0)
    except StartupError:
        pytest.skip("no IPv6 here")
    with listener, uvicorn_server.listen_alone(listener):
        uvicorn_server.write_startup_line(listener, Settings())
        port = listener.getsockname()[1]
        assert said.until("listening on ") == f"http://[::1]:{port}"
        socket.create_connection(("::1", port)).close()


def test_a_service_open_to_others_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with uvicorn_server.bind("0.0.0.0", 0) as bound:
        for settings in (Settings(), Settings(public=True), Settings(api_keys_file=Path("keys"))):
            uvicorn_server.write_startup_line(bound, settings)
    assert caplog.text.count("WARNING") == 1


def test_without_a_device_left_it_ends_to_be_started_anew(
    configured: Callable[..., None], said: Said, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    configured()
    gone = threading.Event()
    run = OnnxModel.run

    def failing(model: OnnxModel, rows: FloatRows) -> FloatRows:
        if gone.is_set():
            raise DeviceLost("CUDA failure 700: an illegal memory access was encountered")
        return run(model, rows)

    monkeypatch.setattr(OnnxModel, "run", failing)

    def script() -> None:
        url = said.until("listening on ")
        ready(url)
        gone.set()
        problem(
            httpx.post(f"{url}/generate", json={"n": 4}, timeout=PATIENCE_S), 500, "model_failure"
        )
        said.until("draining: ")

    assert main_beside(script) == 1
    err = capsys.readouterr().err
    assert (
        "CRITICAL a device is lost: CUDA failure 700: an illegal memory access was encountered"
        in err
    )


@pytest.mark.parametrize(
    ("options", "cpus", "gib", "has_gpu", "count"),
    [
        ("", 1, 64, False, 1),
        ("", 3, 64, False, 1),
        ("", 9, 64, False, 4),
        ("", 9, 3, False, 3),
        ("", 9, 0, False, 1),  # the system does not tell
        ("", 1024, 4096, False, 256),
        ("", 9, 64, True, 1),
        ("device=cuda", 9, 64, True, 1),
        ("device=cpu", 9, 64, True, 4),
        ("device=cpu threads=6", 64, 64, True, 3),
        ("device=cpu model_memory_mib=512", 9, 64, True, 1),
        ("model_memory_mib=512", 9, 64, False, 1),
        ("workers=1", 9, 64, False, 1),
        ("workers=2 device=cpu", 1, 0, True, 2),
    ],
)
def test_as_many_processes_as_pay(
    configured: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    cpus: int,
    gib: int,
    has_gpu: bool,
    count: int,
) -> None:
    serving = Mock(return_value=0)
    monkeypatch.setattr(cli, "_serve", serving)
    monkeypatch.setattr(cli, "available_cpus", lambda: cpus)
    monkeypatch.setattr(cli, "memory_limit", lambda: gib << 30)
    monkeypatch.setattr("service.runtime.session.cuda_is_usable", lambda: has_gpu)
    configured(DEVICE="auto", WORKERS="")
    assert serve(dict(option.split("=") for option in options.split())) == 0
    assert serving.call_args.args[0].workers == count


def test_several_processes_and_a_gpu_are_refused(
    configured: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("service.runtime.session.cuda_is_built_in", lambda: True)
    monkeypatch.setattr("service.runtime.session.gpu_is_visible", lambda: True)
    configured(DEVICE="auto")
    for options, said in (
        ({"workers": "2"}, "--workers=2 needs IGN_DEVICE=cpu: on a GPU"),
        ({"model_memory_mib": "9"}, "--model-memory-mib=9 needs IGN_DEVICE=cpu: it limits"),
        ({"workers": "2", "device": "cuda"}, "--workers=2 needs --device=cpu"),
        ({"api_keys_file": "/nowhere", "device": "cpu"}, "API keys file /nowhere: "),
    ):
        assert serve(options, check=True) == 2
        assert capsys.readouterr().err.startswith(f"ign-service does not start: {said}")
    configured(PROT="9", ZEBRA="9")  # named before models are opened
    assert serve({"model_dir": "/nowhere"}, check=True) == 2
    said = "IGN_PROT is no setting (did you mean IGN_PORT?), IGN_ZEBRA is no setting"
    assert said in capsys.readouterr().err
