"""Start traces if they are wanted and OpenTelemetry, which is optional, is installed."""

import logging
from typing import TYPE_CHECKING

from service.settings import trace_exporters

if TYPE_CHECKING:
    from service.observability.tracing import Tracing

_LOG = logging.getLogger(__name__)


def tracing_from_environment() -> "Tracing | None":
    """Start the traces that the variables `OTEL_…` ask for; None, perhaps after a warning, if there are none."""
    exporters = trace_exporters()
    if not exporters:
        return None
    try:
        from service.observability.tracing import start_tracing
    except ImportError:  # something else in this environment may have set the variables
        _LOG.warning("no traces, although OTEL_… variables ask for them: the extra `otel` is not installed")
        return None
    return start_tracing(exporters)
