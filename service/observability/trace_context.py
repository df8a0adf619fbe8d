"""The W3C Trace Context of a request, https://www.w3.org/TR/trace-context/, and whether traces are recorded."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from service.settings import trace_exporters

if TYPE_CHECKING:
    from service.observability.tracing import Tracing

_LOG = logging.getLogger(__name__)
# A later version may append fields after a dash; version ff is invalid.
_TRACEPARENT: Final = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1
_KNOWN_FLAGS: Final = 3  # sampled, and the random flag of level 2; the others are zero when they are passed on


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A position in a trace."""

    trace_id: str  # 32 hex digits
    span_id: str  # 16 hex digits
    flags: int  # 1 if the trace is recorded, 2 if its id is random

    @property
    def sampled(self) -> bool:
        """Whether the trace is recorded."""
        return bool(self.flags & _SAMPLED)

    @property
    def traceparent(self) -> str:
        """The value of the header `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def parse_traceparent(values: Sequence[str]) -> TraceContext | None:
    """The trace context of a request with these headers `traceparent`.

    None if there is none or an invalid one, which the standard wants ignored.
    """
    found = _TRACEPARENT.fullmatch(values[0].strip(" \t")) if len(values) == 1 else None
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, int(flags, 16) & _KNOWN_FLAGS)


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
