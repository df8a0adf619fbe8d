"""`python -m service`: read the settings, open the port, serve until told to stop."""

import logging
import logging.config
import sys

from service import server
from service.api.middleware import JsonFormatter
from service.domain.errors import StartupError
from service.host import check_installed, installed_runtimes
from service.settings import Settings, from_environment, silence_runtime


def main() -> int:
    """Serve; returns the exit status: 0 after a clean stop, 2 for a refusal to start."""
    refusals: list[StartupError] = []
    try:
        # Before anything imports onnxruntime, which would fail less clearly.
        check_installed(installed_runtimes())
        silence_runtime()
        from service.app import create_app

        settings = from_environment()
        _configure_logging(settings)

        def refuse(exc: StartupError) -> None:
            refusals.append(exc)
            running.should_exit = True

        with server.listen(settings) as listener:
            app = create_app(settings, refuse=refuse)
            running = server.Server(server.config(app), app.state.services)
            running.run(sockets=[listener])
    except StartupError as exc:
        refusals.append(exc)
    for refusal in refusals:
        print(f"ign-service does not start: {refusal.detail}", file=sys.stderr)  # noqa: T201
    return 2 if refusals else 0


def _configure_logging(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # uvicorn says what this program says itself, or what the access log says.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
