"""What the processes of `test_supervisor` do: importable, since they are started afresh."""

import os
import signal
from multiprocessing.connection import Connection

from service.settings import Settings
from service.supervisor import LISTENING


def told_to_stop(settings: Settings, parent: Connection) -> None:
    """Say hello in a file, and wait for SIGTERM or the parent's end."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    parent.send_bytes(LISTENING)
    (settings.model_dir / str(os.getpid())).write_text(f"{settings.threads} {settings.queue_rows}")
    parent.poll(None)


def refuses(settings: Settings, parent: Connection) -> None:
    """Refuse to start."""
    parent.send_bytes(b"no model in /nowhere")


def stops_badly(settings: Settings, parent: Connection) -> None:
    """End with status 7 when told to stop."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    (settings.model_dir / str(os.getpid())).write_text("hello")
    parent.poll(None)
