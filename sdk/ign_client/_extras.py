"""Import Pillow, numpy and OpenTelemetry, which are optional, when they are needed."""

import sys
from importlib import import_module
from typing import Any


def pillow() -> Any:
    return _optional("PIL.Image", "Pillow")


def numpy() -> Any:
    return _optional("numpy", "numpy")


def _optional(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as exc:
        raise ImportError(f"{package} is needed for this: pip install 'ign-client[images]'") from exc


def trace_headers() -> dict[str, str]:
    """Headers that pass the caller's trace on, such as `traceparent`; none unless the program uses OpenTelemetry."""
    headers: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry import propagate

        propagate.inject(headers)
    return headers
