"""One of several serving processes, inside this one; the parent is the test."""

import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import pytest

from service.server import sockets, uvicorn_server, worker_process
from service.server.supervisor import LISTEN, LISTENING, READY
from service.settings import Settings
from tests.contract.harness import PATIENCE_S, Gate, problem
from tests.helpers.onnx_models import write_model


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        worker_process, "configure_logging", lambda _: logging.getLogger("uvicorn").setLevel(logging.WARNING)
    )


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr("service.app.OnnxModel", gate.model)
    yield gate
    gate.opened.set()


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    write_model(tmp_path)
    with sockets.bind("127.0.0.1", 0, shared=True) as bound:
        yield Settings(
            port=bound.getsockname()[1], workers=2, device="cpu", threads=1, default_model="toy", model_dir=tmp_path
        )


def heard(parent: Connection) -> bytes:
    assert parent.poll(PATIENCE_S)
    return parent.recv_bytes()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def work(settings: Settings, script: Callable[[Connection], None], *, told: bool = False) -> list[bytes]:
    """Work here, where signals arrive, with the script beside it, which must see to its end; what was said to its end.

    Args:
        settings: the process's.
        script: what the parent does meanwhile.
        told: to listen, before it starts.
    """
    ours, theirs = multiprocessing.Pipe()
    if told:
        ours.send_bytes(LISTEN)

    def run() -> None:
        try:
            script(ours)
        except BaseException:
            stop()
            raise

    with ThreadPoolExecutor(1) as pool, theirs:
        done = pool.submit(run)
        worker_process.work(settings, theirs)
        done.result(PATIENCE_S)
    rest = []
    while not ours.closed:
        try:
            rest.append(ours.recv_bytes())
        except (EOFError, ConnectionResetError):  # the latter when it has not heard everything
            ours.close()
    return rest


def listens(settings: Settings) -> bool:
    try:
        socket.create_connection((settings.host, settings.port)).close()
    except ConnectionRefusedError:
        return False
    return True


def ask(settings: Settings, path: str) -> httpx.Response:
    return httpx.get(f"http://{settings.host}:{settings.port}{path}", timeout=PATIENCE_S)


def test_the_first_opens_the_port_and_says_that_it_loads(settings: Settings, gate: Gate) -> None:
    gate.close()

    def script(parent: Connection) -> None:
        assert heard(parent) == LISTENING
        assert "being loaded" in problem(ask(settings, "/readyz"), 503, "not_ready").detail
        gate.opened.set()
        assert heard(parent) == READY
        assert ask(settings, "/readyz").status_code == 200
        stop()

    assert work(settings, script, told=True) == []


def test_another_one_listens_when_it_is_told_to(settings: Settings) -> None:
    def script(parent: Connection) -> None:
        assert heard(parent) == READY
        assert not listens(settings)
        parent.send_bytes(LISTEN)
        assert heard(parent) == LISTENING
        for _ in range(2 * uvicorn_server.ACCEPTS):  # connections to all of its listeners
            assert ask(settings, "/readyz").status_code == 200
        stop()

    assert work(settings, script) == []
    assert not listens(settings)


@pytest.mark.parametrize("loaded", [True, False])
def test_one_that_waits_can_be_stopped(settings: Settings, gate: Gate, loaded: bool) -> None:
    if not loaded:
        gate.close()

    def script(parent: Connection) -> None:
        if loaded:
            assert heard(parent) == READY
        else:
            assert gate.entered.wait(PATIENCE_S)
        stop()
        gate.opened.set()

    assert work(settings, script) in ([], [] if loaded else [READY])


def test_one_that_waits_leaves_with_its_parent(settings: Settings) -> None:
    def script(parent: Connection) -> None:
        assert heard(parent) == READY
        parent.close()

    assert work(settings, script) == []


def test_one_that_waits_can_refuse(settings: Settings) -> None:
    (settings.model_dir / "toy" / "1" / "golden.npz").unlink()
    (said,) = work(settings, lambda _: None)
    assert said.endswith(b"golden.npz: no such file")


def test_one_that_refuses_when_its_parent_is_gone_has_nobody_to_tell(settings: Settings) -> None:
    (settings.model_dir / "toy" / "1" / "golden.npz").unlink()
    assert work(settings, Connection.close) == []


@pytest.fixture
def taken(settings: Settings) -> Iterator[socket.socket]:
    """Another program's socket, bound to the port before anybody listens there."""
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((settings.host, settings.port))
        yield found


def in_use(settings: Settings) -> list[bytes]:
    return [f"cannot listen on 127.0.0.1:{settings.port}: Address already in use".encode()]


def test_another_program_may_take_the_port_while_this_one_waits(settings: Settings, taken: socket.socket) -> None:
    def script(parent: Connection) -> None:
        assert heard(parent) == READY
        taken.listen()
        parent.send_bytes(LISTEN)

    assert work(settings, script) == in_use(settings)


def test_another_program_may_take_the_port_while_this_one_starts(
    settings: Settings, taken: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(host: str, port: int, *, shared: bool) -> socket.socket:
        try:
            return server_bind(host, port, shared=shared)
        finally:
            taken.listen()

    server_bind = sockets.bind
    monkeypatch.setattr(sockets, "bind", bind)
    assert work(settings, lambda _: None, told=True) == in_use(settings)
