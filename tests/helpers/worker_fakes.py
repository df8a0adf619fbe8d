"""What the processes of `test_supervisor` do: importable, since they are started afresh."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from service.server.supervisor import LISTENING, READY
from service.settings import Settings


def told_to_stop(settings: Settings, parent: Connection) -> None:
    """Say hello in a file, and wait for SIGTERM or the parent's end."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    parent.send_bytes(READY)
    (settings.model_dir / str(os.getpid())).write_text(f"{settings.threads} {settings.queue_rows}")
    _obey(parent, lambda: parent.send_bytes(LISTENING))


def by_hand(settings: Settings, parent: Connection) -> None:
    """Note in a file when told to listen, and when ready, which it is at SIGUSR1."""

    def note(what: str, when: int) -> None:
        with (settings.model_dir / str(os.getpid())).open("a") as file:
            file.write(f"{what} {when}\n")

    def ready(*_: object) -> None:
        now = time.monotonic_ns()
        parent.send_bytes(READY)
        note("ready", now)

    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGUSR1, ready)
    note("begun", time.monotonic_ns())
    _obey(parent, lambda: note("told", time.monotonic_ns()))


def refuses(settings: Settings, parent: Connection) -> None:
    """Refuse to start."""
    parent.send_bytes(b"no model in /nowhere")


def refuses_later(settings: Settings, parent: Connection) -> None:
    """The first three serve, whoever comes after them refuses to start."""
    if len(list(settings.model_dir.iterdir())) >= 3:
        refuses(settings, parent)
    else:
        told_to_stop(settings, parent)


def stops_badly(settings: Settings, parent: Connection) -> None:
    """End with status 7 when told to stop."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    (settings.model_dir / str(os.getpid())).write_text("hello")
    _obey(parent, lambda: None)


def dies(settings: Settings, parent: Connection) -> None:
    """End before it is ready."""
    os._exit(5)


def dies_later(settings: Settings, parent: Connection) -> None:
    """End as soon as it is ready."""
    parent.send_bytes(READY)
    (settings.model_dir / str(os.getpid())).write_text("hello")
    os._exit(5)


def one_dies(settings: Settings, parent: Connection) -> None:
    """The first is ready and stays, all others end before they are."""
    try:
        (settings.model_dir / "0").open("x").close()
    except FileExistsError:
        (settings.model_dir / str(os.getpid())).write_text("hello")
        dies(settings, parent)
    told_to_stop(settings, parent)


def _obey(parent: Connection, listen: Callable[[], None]) -> None:
    while True:
        try:
            parent.recv_bytes()
        except EOFError:
            return
        listen()
