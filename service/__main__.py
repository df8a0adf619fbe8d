"""`python -m service`: read the settings, open the port, serve until a signal."""

import sys
from functools import partial

from service.domain.errors import StartupError
from service.environment import prepare_process
from service.observability.log_queue import flush_log
from service.server import open_files, sockets, worker_process
from service.server.supervisor import supervise
from service.settings import from_environment, log_name_warnings


def main() -> int:
    """Serve. The exit status is 0 after a clean stop, 1 when no device is left, and 2 for a refusal to start."""
    try:
        return _run()
    except StartupError as exc:
        flush_log()
        print(f"ign-service does not start: {exc.detail}", file=sys.stderr)  # noqa: T201
        return 2
    finally:
        flush_log()


def _run() -> int:
    prepare_process()
    settings = from_environment()
    worker_process.configure_logging(settings)
    log_name_warnings()
    open_files.raise_limit()
    with sockets.listen(settings) as listener:
        if settings.workers == 1:
            sockets.write_startup_line(listener)
            return worker_process.run_server(settings, listener)
        port = listener.getsockname()[1]
    # No other program listens on this port. This socket is bound but does not listen: it reserves the port.
    with sockets.bind(settings.host, port, shared=True) as reserved:
        return supervise(
            settings.replace(port=port),
            worker_process.worker_main,
            on_listening=partial(sockets.write_startup_line, reserved),
        )


if __name__ == "__main__":
    worker_process.leave(main())
