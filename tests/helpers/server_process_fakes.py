"""Main functions of server processes for `test_supervisor`. The processes import them, so they
stand in a module.
"""

import contextlib
import os
import signal
import time
from multiprocessing.connection import Connection

from service.models.registry import ModelChange
from service.settings import Settings


def serves(settings: Settings, messages: Connection) -> None:
    """Write a file named after the process, and wait for SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    messages.send("")
    # The test ends the process when it finds the file, and expects that it has listened.
    (settings.model_dir / str(os.getpid())).write_text("serves")
    while True:
        messages.send(None)
        time.sleep(0.05)


def serves_shortly(settings: Settings, messages: Connection) -> None:
    """Listen and end at once."""
    messages.send("")
    dies(settings, messages)


def serves_alone(settings: Settings, messages: Connection) -> None:
    """Serve, if it is the first; else end when that one serves, and say so after the first end."""
    with contextlib.suppress(FileExistsError):
        (settings.model_dir / "first").touch(exist_ok=False)
        serves(settings, messages)
    while (files := len(list(settings.model_dir.iterdir()))) < 2:
        time.sleep(0.05)
    if files > 2:
        refuses(settings, messages)
    dies(settings, messages)


def refuses(settings: Settings, messages: Connection) -> None:
    """Refuse to start."""
    messages.send("no model in /nowhere")


def dies(settings: Settings, messages: Connection) -> None:
    """Write the file, and end at once."""
    (settings.model_dir / str(os.getpid())).write_text("started")
    os._exit(5)


def changes(settings: Settings, messages: Connection) -> None:
    """Serve, and ask for the change that a file `ask` holds. What it hears goes into files in a
    folder of its own.

    The one who asks makes every change, the others none that is called `stuck`.
    """
    folder = settings.model_dir / f"process-{os.getpid()}"
    folder.mkdir()
    (folder / "unloaded").write_text(" ".join(sorted(messages.recv())))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    messages.send("")
    (settings.model_dir / str(os.getpid())).write_text("started")
    asks = False
    while True:
        messages.send(None)
        with contextlib.suppress(FileNotFoundError):
            (settings.model_dir / "ask").rename(folder / "asked")
            asks = True
            word, name = (folder / "asked").read_text().split()
            messages.send((7, ModelChange(name, loads=word == "load")))
        if not messages.poll(0.05):
            continue
        key, content = messages.recv()
        if not isinstance(content, ModelChange):
            (folder / "answer").write_text(f"{key} {content}")
            continue
        (folder / content.name).write_text(f"{content.loads}")
        if asks or content.name != "stuck":
            messages.send((key, None))
