"""Everything the client raises on purpose, as one tree, split by whose fault it is.

IgnError
├── InputError                 yours, found before anything is sent (also a ValueError)
├── TransportError             nobody answered
│   ├── ConnectionFailed       no connection, or it broke
│   └── TimedOut               the service did not answer in time
├── UnexpectedAnswer           an answer, but not one of ign-service's
└── StatusError                the service said no: status, code, detail, request_id, retry_after, errors
    ├── BadRequest             400  not JSON, bad multipart, bad header value
    ├── Unauthorized           401  key missing or wrong
    ├── Forbidden              403  key without the scope
    ├── NotFound               404  no such model, version or path
    ├── MethodNotAllowed       405
    ├── NotAcceptable          406  the endpoint does not offer this form
    ├── BodyTooSlow            408  the request's body did not arrive in time
    ├── TooLarge               413  body or picture beyond a limit
    ├── UnsupportedMedia       415  the request's own content type
    ├── InvalidContent         422  a value, picture, array or mask is unusable; `errors` names the fields
    ├── TooManyRequests        429  queue full, deadline in doubt, or over quota
    ├── ServiceFailed          500  the service's own fault, and any other 5xx
    ├── BadGateway             502  a proxy could not reach it
    ├── Unavailable            503  loading, draining, too many connections
    └── DeadlineExceeded       504  the deadline passed, or could not have been met

408, 429, 502, 503, 504 and TransportError are raised only after the retries are spent.
"""

from dataclasses import dataclass


class IgnError(Exception):
    """Base of everything this client raises on purpose."""


class InputError(IgnError, ValueError):
    """What was handed in cannot be sent; the text names which part and why. Nothing was sent."""


class TransportError(IgnError):
    """Nobody answered. The cause is httpx's own exception."""


class ConnectionFailed(TransportError):
    """No connection, or it broke."""


class TimedOut(TransportError):
    """The service did not answer in time."""


class UnexpectedAnswer(IgnError):
    """An answer that is not one of ign-service's: another server, a proxy's page, a stream that ends early.

    Args:
        detail: what is wrong with it.
        request_id: where the answer carried one.
    """

    def __init__(self, detail: str, request_id: str | None = None) -> None:
        super().__init__(detail, request_id)
        self.detail = detail
        self.request_id = request_id

    def __str__(self) -> str:
        return _with_id(self.detail, self.request_id)


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field of a request and what is wrong with it.

    Args:
        field: dotted path, such as ``images.0`` or ``points.1.seed``.
        message: what is wrong.
    """

    field: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What the service says of a failure (RFC 9457).

    Args:
        status: HTTP status.
        code: stable name for programs to compare; ``unknown`` where the answer is no problem document.
        detail: one sentence.
        request_id: quote it to the service's operator.
        retry_after: seconds until another attempt is worth while, or None.
        errors: fields to blame.
    """

    status: int
    code: str
    detail: str
    request_id: str | None = None
    retry_after: float | None = None
    errors: tuple[FieldError, ...] = ()


class StatusError(IgnError):
    """The service said no. A status without a class of its own is raised as this one.

    Args:
        problem: what it said; its members are attributes of the error as well.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = problem.status
        self.code = problem.code
        self.detail = problem.detail
        self.request_id = problem.request_id
        self.retry_after = problem.retry_after
        self.errors = problem.errors

    def __str__(self) -> str:
        return _with_id(f"{self.status} {self.code}: {self.detail}", self.request_id)


class BadRequest(StatusError):
    """400: not JSON, bad multipart, bad header value."""


class Unauthorized(StatusError):
    """401: key missing or wrong."""


class Forbidden(StatusError):
    """403: key without the scope."""


class NotFound(StatusError):
    """404: no such model, version or path; ``code`` says which."""


class MethodNotAllowed(StatusError):
    """405: the path has no such method."""


class NotAcceptable(StatusError):
    """406: the endpoint does not offer this form of answer."""


class BodyTooSlow(StatusError):
    """408: the request's body did not arrive in time."""


class TooLarge(StatusError):
    """413: body or picture beyond a limit."""


class UnsupportedMedia(StatusError):
    """415: the request's own content type or content encoding."""


class InvalidContent(StatusError):
    """422: a value, picture, array or mask is unusable; ``errors`` names the fields."""


class TooManyRequests(StatusError):
    """429: queue full, deadline in doubt, or over quota."""


class ServiceFailed(StatusError):
    """500, and any 5xx without a class of its own."""


class BadGateway(StatusError):
    """502: a proxy could not reach the service."""


class Unavailable(StatusError):
    """503: loading, draining, or too many connections."""


class DeadlineExceeded(StatusError):
    """504: the deadline passed, or could not have been met; ``code`` says which."""


BY_STATUS: dict[int, type[StatusError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    406: NotAcceptable,
    408: BodyTooSlow,
    413: TooLarge,
    415: UnsupportedMedia,
    422: InvalidContent,
    429: TooManyRequests,
    500: ServiceFailed,
    502: BadGateway,
    503: Unavailable,
    504: DeadlineExceeded,
}
"""The class of every status the contract knows."""


def status_error(problem: Problem) -> StatusError:
    """The error of a problem, by its status."""
    kind = BY_STATUS.get(problem.status) or (ServiceFailed if problem.status > 500 else StatusError)
    return kind(problem)


def _with_id(text: str, request_id: str | None) -> str:
    return f"{text} (request {request_id})" if request_id else text
