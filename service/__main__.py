"""`python -m service`: read the settings, open the port, serve until told to stop."""

import dataclasses
import sys

from service import process, server
from service.domain.errors import StartupError
from service.host import check_installed, installed_runtimes
from service.settings import from_environment, silence_runtime
from service.supervisor import supervise


def main() -> int:
    """Serve; returns the exit status: 0 after a clean stop, 2 for a refusal to start."""
    try:
        # Before anything imports onnxruntime, which would fail less clearly.
        check_installed(installed_runtimes())
        silence_runtime()
        settings = from_environment()
        process.configure_logging(settings)
        with server.listen(settings) as listener:
            if settings.workers == 1:
                return process.serve(settings, listener)
            port = listener.getsockname()[1]
        # Nobody else listens there. Bound, but not listening, this socket keeps it so.
        with server.bind(settings.host, port, shared=True):
            return supervise(dataclasses.replace(settings, port=port), process.work, process.forget)
    except StartupError as exc:
        return process.refuse_to_start(exc)


if __name__ == "__main__":
    sys.exit(main())
