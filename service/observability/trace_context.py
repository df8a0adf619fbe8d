"""The W3C Trace Context of a request: https://www.w3.org/TR/trace-context/."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# A later version may append fields after a dash; version ff is invalid.
_TRACEPARENT: Final = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1
_KNOWN_FLAGS: Final = 3  # sampled, and the random flag of level 2; the others are zero when they are passed on


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A position in a trace.

    Args:
        trace_id: 32 hex digits.
        span_id: 16 hex digits.
        flags: 1 if the trace is recorded, 2 if its id is random.
    """

    trace_id: str
    span_id: str
    flags: int

    @property
    def sampled(self) -> bool:
        """Whether the trace is recorded."""
        return bool(self.flags & _SAMPLED)

    @property
    def traceparent(self) -> str:
        """The value of the header `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def parse_traceparent(values: Sequence[str]) -> TraceContext | None:
    """The trace context of a request; None if it has none or an invalid one, which the standard wants ignored.

    Args:
        values: of all headers `traceparent` of the request.
    """
    found = _TRACEPARENT.fullmatch(values[0].strip(" \t")) if len(values) == 1 else None
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, int(flags, 16) & _KNOWN_FLAGS)
