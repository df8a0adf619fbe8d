"""Import Pillow, numpy and OpenTelemetry, which are optional, when they are needed."""

import sys
from typing import Any


def pillow() -> Any:
    try:
        import PIL.Image
    except ImportError as exc:
        raise ImportError("Pillow is needed for this: pip install 'ign-client[images]'") from exc
    return PIL.Image


def numpy() -> Any:
    try:
        import numpy
    except ImportError as exc:
        raise ImportError("numpy is needed for this: pip install 'ign-client[images]'") from exc
    return numpy


def trace_headers() -> dict[str, str]:
    """Headers that pass the caller's trace on, such as `traceparent`; none unless the program uses
    OpenTelemetry.
    """
    headers: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry import propagate

        propagate.inject(headers)
    return headers
