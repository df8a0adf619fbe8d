"""The client's commands, against a running service, or with `--local` against one in a thread of this process."""

import argparse
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final

import click

from ign.parsers import commands_of
from ign_client import _cli as client
from ign_client._batches import Terminal
from service.domain.errors import StartupError

# Only this process knows the port, so nobody needs a key or a quota.
_OVERRIDES: Final = {
    "IGN_HOST": "127.0.0.1",
    "IGN_PORT": "0",
    "IGN_WORKERS": "1",
    **dict.fromkeys(("IGN_API_KEYS_FILE", "IGN_PRIVATE_ENDPOINTS", "IGN_RATE_LIMIT"), ""),
}


def client_command(name: str) -> click.Command:
    """One of the client's commands, such as `generate`."""
    return commands_of(_parser(), _run)[name]


def _parser() -> argparse.ArgumentParser:
    text = "start a service in this process for this command, on the IGN_… variables of `ign serve`"
    return client.parser("ign", switches={"--local": text})


def _run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    terminal = Terminal(sys.stdout, sys.stderr)
    if not options.local:
        return client.run(options, terminal, "`ign serve` starts a service; with --local, this command needs none")
    if options.base_url:
        raise StartupError("--local starts a service of its own; leave --base-url out")
    with _local_service() as options.base_url:
        return client.run(options, terminal)


@contextmanager
def _local_service() -> Iterator[str]:
    """Serve on a free port of the loopback interface until the block ends; yields the URL once models are verified."""
    from service.environment import prepare_process

    prepare_process()  # before the modules below, which import onnxruntime
    import uvicorn

    from service.app import build_services, create_app, make_connections
    from service.server import uvicorn_server
    from service.settings import from_environment

    settings = from_environment(_OVERRIDES)
    started: Future[StartupError | None] = Future()
    with uvicorn_server.bind(settings.host, settings.port, listens=True) as listener:
        services = build_services(settings)
        app = create_app(services, on_loaded=started.set_result)
        server = uvicorn.Server(uvicorn_server.config(app, make_connections(services)))

        def run() -> None:
            try:
                server.run(sockets=[listener])
            finally:
                if not started.done():
                    started.set_exception(StartupError("the service ended before it was ready"))

        thread = threading.Thread(target=run, name="ign-local")
        thread.start()
        try:
            if (error := started.result()) is not None:
                raise error
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
