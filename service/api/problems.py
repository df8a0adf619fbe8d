"""Turn every exception into an `application/problem+json` response (RFC 9457).

`type` is `about:blank`, so `title` is the status phrase. `code` is the stable name that programs
should compare. `error` repeats `detail`, because clients of the Open Inference Protocol read it.
Only exceptions of `service.domain.errors` and of validation put their text into the response. Any
other exception is logged with the request id, and the response has a fixed text.
"""

import json
import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from pydantic import ValidationError
from starlette.responses import Response

from service.api.negotiation import Json
from service.domain import errors
from service.domain.errors import IgnError, InvalidContent, reason_of

MEDIA_TYPE: Final = "application/problem+json"
_OIP: Final = "/v2/"  # the paths of the Open Inference Protocol, which knows no 422
_OPENAI: Final = "/v1/"  # the paths of OpenAI's API, whose clients expect its errors

# `http.HTTPStatus` of older Pythons has other phrases.
_TITLES: Final = {413: "Content Too Large", 422: "Unprocessable Content"}
_INTERNAL_ERROR: Final = (
    "the service failed on this request; its log tells why under this request id"
)
_MAX_FIELDS: Final = 32  # a body can hold a million invalid items
_MAX_PATH: Final = 200  # characters; an unknown field can have a name of any length
_MAX_RETRY_S: Final = 3600

_logger = logging.getLogger(__name__)


class NoEndpoint(IgnError, code="not_found"):
    """Nothing is served at a path."""

    def __init__(self, detail: str = "nothing is served at this path; /docs lists the API") -> None:
        super().__init__(detail)


class WrongMethod(IgnError, code="method_not_allowed"):
    """A path is not served by this method, but by those that are ``allowed``: a header's value."""

    def __init__(self, detail: str, *, allowed: str = "") -> None:
        super().__init__(detail)
        self.allowed = allowed


STATUS: Final[Mapping[type[IgnError], int]] = {
    IgnError: 500,
    errors.RequestError: 400,
    errors.UnauthorizedError: 401,
    errors.ForbiddenError: 403,
    errors.UnknownModel: 404,
    NoEndpoint: 404,
    WrongMethod: 405,
    errors.NotAcceptable: 406,
    errors.BodyTooSlow: 408,
    errors.HeadTooSlow: 408,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    InvalidContent: 422,
    errors.OverloadedError: 429,
    errors.HeadTooLarge: 431,
    errors.NotSupported: 501,
    errors.UnavailableError: 503,
    errors.DeadlineError: 504,
}
"""HTTP status of each error class; a class that is not listed has the status of its nearest
base.
"""
_HEADERS: Final[Mapping[type[IgnError], dict[str, str]]] = {
    errors.UnauthorizedError: {"WWW-Authenticate": "Bearer"},
    errors.DeadlineUnreachable: {"X-Should-Retry": "false"},
    # The rest of the body may never arrive, so the connection cannot be reused.
    errors.BodyTooSlow: {"Connection": "close"},
    # The client should connect to another replica for its next attempt.
    errors.Draining: {"Connection": "close"},
}


def describe(exc: Exception, path: str = "") -> IgnError:
    """What the caller of a ``path`` is told of an exception; one that no rule covers gets status
    500 and a fixed text.
    """
    if isinstance(exc, ValidationError):
        exc = invalid_content(exc)
    if isinstance(exc, InvalidContent) and path.startswith(_OIP):
        return errors.InvalidInference(exc.detail)
    # The text of a `StartupError` is for the operator and may name files.
    if isinstance(exc, errors.StartupError) or not isinstance(exc, IgnError):
        return IgnError(_INTERNAL_ERROR, code=getattr(exc, "error_code", None))
    return exc


def status_of(error: type[IgnError]) -> int:
    """The HTTP status of an error class: that of its nearest base in `STATUS`."""
    return next(STATUS[base] for base in error.__mro__ if base in STATUS)


def problem_body(error: IgnError, request_id: str, path: str = "") -> Json:
    """The members of the problem document, ready for JSON; below `/v1`, of the error of OpenAI's
    API.
    """
    status = status_of(type(error))
    fields = error.fields if isinstance(error, InvalidContent) else ()
    if path.startswith(_OPENAI):
        is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        kind = "server_error" if is_ours else "invalid_request_error"
        return {
            "error": {
                "message": error.detail,
                "type": "rate_limit_error" if status == HTTPStatus.TOO_MANY_REQUESTS else kind,
                "param": fields[0][0] if fields else None,
                "code": error.error_code,
            }
        }
    members: Json = {
        "type": "about:blank",
        "title": _TITLES.get(status) or HTTPStatus(status).phrase,
        "status": status,
        "detail": error.detail,
        "code": error.error_code,
        "request_id": request_id,
        "error": error.detail,
    }
    if fields:
        members["errors"] = [{"field": name, "message": message} for name, message in fields]
    return members


def problem_response(error: IgnError, request_id: str, path: str = "") -> Response:
    """The response to a failed request for ``path``."""
    # JSON in ASCII, because a field name of the caller may hold a lone surrogate, which UTF-8
    # cannot encode.
    content = json.dumps(problem_body(error, request_id, path)).encode("ascii")
    media_type = "application/json" if path.startswith(_OPENAI) else MEDIA_TYPE
    return Response(content, status_of(type(error)), _headers(error), media_type)


def log_failure(exc: Exception, request_id: str) -> None:
    """Log a server error with its traceback and the id of the request."""
    _logger.error("request %s failed", request_id, exc_info=exc, extra={"request_id": request_id})


def _headers(exc: IgnError) -> dict[str, str]:
    if isinstance(exc, WrongMethod):
        return {"Allow": exc.allowed}
    headers = _HEADERS.get(type(exc), {})
    if isinstance(exc, errors.TemporaryError):
        # of NaN, too
        seconds = math.ceil(min(max(1.0, exc.retry_after), _MAX_RETRY_S))
        return {"Retry-After": str(seconds), **headers}
    return headers


def invalid_content(exc: ValidationError) -> InvalidContent:
    """What is wrong with the fields of a request; the first 32 of them are named."""
    found = exc.errors(include_url=False, include_input=False)
    fields = [
        (".".join(map(str, error["loc"]))[:_MAX_PATH] or "request", _message(error))
        for error in found[:_MAX_FIELDS]
    ]
    # Two are named, because the second may be the mistake: `{"n": 0, "sed": 7}`.
    more = f" (and {len(found) - 2} more)" if len(found) > 2 else ""
    return InvalidContent("; ".join(map(": ".join, fields[:2])) + more, fields=fields)


def _message(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden" and error["loc"][-1:] == ("image",):
        return "unknown field; JSON takes a list `images`"
    hint = (
        ', such as {"seed": 1}'
        if error["type"] == "model_type" and error["loc"][:1] in (("points",), ("terms",))
        else ""
    )
    return reason_of(error) + hint
