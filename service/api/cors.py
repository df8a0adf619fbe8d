"""Cross-origin requests (CORS): Starlette's middleware with this service's headers and error
documents.
"""

from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from service.domain.errors import MalformedRequest

EXPOSED_HEADERS: Final = (
    "ETag",
    "Retry-After",
    "Server-Timing",
    "traceparent",
    "X-IGN-Distance",
    "X-IGN-Drift",
    "X-IGN-Model",
    "X-IGN-Seed",
    "X-IGN-Steps",
    "X-Request-ID",
    "X-Should-Retry",
)
_ALLOWED_HEADERS: Final = (
    "Authorization",
    "Inference-Header-Content-Length",
    "traceparent",
    "tracestate",
    "X-Request-ID",
    "X-Request-Timeout",
)


class CorsMiddleware(CORSMiddleware):
    """Starlette's `CORSMiddleware` with this service's headers."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=_ALLOWED_HEADERS,
            expose_headers=EXPOSED_HEADERS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """The response to a preflight; raises `MalformedRequest` for a bad one."""
        response = super().preflight_response(request_headers)
        if response.status_code >= 400:
            raise MalformedRequest(bytes(response.body).decode())
        return response
