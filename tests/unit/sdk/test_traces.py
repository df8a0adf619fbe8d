"""The caller's trace is passed on if the program uses OpenTelemetry."""

import sys
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from tests.unit.sdk.asking import Ask, Canned, generated, ready


def headers_of(ask: Ask, method: str = "ready", *arguments: Any) -> dict[str, str]:
    transport = Canned(ready() if method == "ready" else httpx.Response(200, json=generated()))
    ask(transport, method, *arguments)
    return dict(transport.asked[0].headers)


@pytest.mark.parametrize("method", ["ready", "generate"])
def test_the_callers_position_is_sent(ask: Ask, method: str) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("caller") as span:
        own = span.get_span_context()
        assert (
            headers_of(ask, method)["traceparent"] == f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
        )


def test_without_a_span_there_is_none(ask: Ask) -> None:
    assert not trace.get_current_span().get_span_context().is_valid
    assert "traceparent" not in headers_of(ask)


def test_opentelemetry_is_not_imported_for_it(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    assert "traceparent" not in headers_of(ask)
    assert "opentelemetry" not in sys.modules
