"""A service in a thread of this process, for one command."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from service.app import build_services, create_app
from service.domain.errors import StartupError
from service.server import sockets, uvicorn_server
from service.settings import from_environment

_OVERRIDES: Final = {
    "IGN_HOST": "127.0.0.1",
    "IGN_PORT": "0",
    "IGN_WORKERS": "1",
    "IGN_API_KEYS_FILE": "",
    "IGN_PRIVATE_ENDPOINTS": "",
    "IGN_RATE_LIMIT": "",
}
"""Only this process knows the port, so nobody needs a key or a quota."""


@contextmanager
def local_service() -> Iterator[str]:
    """Serve the models of this process's settings on a free port of the loopback interface until the block ends.

    Call `prepare_process` before this module is imported.

    Yields:
        The base URL, once every model is verified.

    Raises:
        StartupError: a setting or a model is unusable.
    """
    settings = from_environment(_OVERRIDES)
    decided, refusals = threading.Event(), list[StartupError]()

    def refuse(exc: StartupError) -> None:
        refusals.append(exc)
        decided.set()

    with sockets.listen(settings) as listener:
        services = build_services(settings)
        app = create_app(services, on_startup_error=refuse, on_ready=decided.set)
        server = uvicorn.Server(uvicorn_server.config(app))

        def run() -> None:
            try:
                server.run(sockets=[listener])
            finally:
                decided.set()

        thread = threading.Thread(target=run, name="ign-local")
        thread.start()
        try:
            decided.wait()
            if refusals:
                raise refusals[0]
            if not services.ready:
                raise StartupError("the service ended before it was ready")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
