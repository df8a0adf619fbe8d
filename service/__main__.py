"""`python -m service`: read the settings, open the port, serve until told to stop."""

import sys

from service.domain.errors import StartupError
from service.environment import prepare_process
from service.server import sockets, worker_process
from service.server.supervisor import supervise
from service.settings import from_environment, log_name_warnings


def main() -> int:
    """Serve; returns the exit status: 0 after a clean stop, 1 when no device is left, 2 for a refusal to start."""
    try:
        return _run()
    except StartupError as exc:
        print(f"ign-service does not start: {exc.detail}", file=sys.stderr)  # noqa: T201
        return 2


def _run() -> int:
    # Before anything imports onnxruntime, which would fail less clearly.
    prepare_process()
    settings = from_environment()
    worker_process.configure_logging(settings)
    log_name_warnings()
    with sockets.listen(settings) as listener:
        if settings.workers == 1:
            sockets.announce(listener)
            return worker_process.serve(settings, listener)
        port = listener.getsockname()[1]
    # Nobody else listens there. Bound, but not listening, this socket keeps it so.
    with sockets.bind(settings.host, port, shared=True) as bound:
        crew = settings.replace(port=port)
        return supervise(
            crew, worker_process.work, listening=lambda: sockets.announce(bound), forget=worker_process.forget
        )


if __name__ == "__main__":
    sys.exit(main())
