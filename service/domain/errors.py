"""Every error the service can answer with, as one tree, split by whose fault it is.

IgnError
├── RequestError               the caller's: sending it again unchanged fails again
│   ├── MalformedRequest       not JSON, bad multipart, bad header value
│   ├── InvalidContent         understood, but unusable: a value, a picture, a mask
│   ├── UnauthorizedError      key missing or wrong
│   ├── ForbiddenError         key without the scope
│   ├── UnknownModel           no such model or version
│   ├── InvalidInference       an Open Inference Protocol request that cannot be run
│   ├── LoadFailed             a model's files do not serve
│   ├── UnloadRefused          a model that has to stay
│   ├── NotSupported           this service, as it is configured, does not do that
│   ├── NotAcceptable          no answer form the caller accepts
│   ├── UnsupportedMedia       the request's own content type or encoding
│   ├── TooLarge               body or picture beyond a limit
│   └── BodyTooSlow            the body did not arrive in time
├── OverloadedError            nobody's: later it works (carries retry_after)
│   ├── QueueFull              rows queued would pass the limit
│   ├── WouldMissDeadline      the queue in the way is longer than the deadline
│   └── RateLimited            over quota
├── DeadlineError              the deadline
│   ├── DeadlineExceeded       passed while waiting
│   └── DeadlineUnreachable    could not be met even on an idle service
├── UnavailableError           not now (carries retry_after)
│   ├── NotReady               loading, or a worker being replaced
│   ├── Draining               shutting down
│   └── TooManyConnections     connection limit reached
├── ModelFailure               ours: the model raised, or gave non-finite values
└── StartupError               refuse to start; the text is the one line the operator reads

`service.api.http.problems` maps each class to its HTTP status in one table.
"""

from collections.abc import Sequence
from typing import ClassVar


class IgnError(Exception):
    """Base of everything this service raises on purpose.

    Args:
        detail: one sentence for the caller; names what is wrong, holds no path and no traceback.
        code: stable, machine-readable; defaults to the class's own.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.error_code = code or type(self).code


class RequestError(IgnError):
    """The caller's fault."""

    code = "bad_request"


class MalformedRequest(RequestError):
    """Not JSON, bad multipart, bad header value."""

    code = "malformed"


class InvalidContent(RequestError):
    """Valid syntax, unusable content.

    Args:
        detail: one sentence.
        fields: pairs of field path (``images.0``, ``steps``) and what is wrong with it.
        code: stable code, ``invalid_value`` when not given.
    """

    code = "invalid_value"

    def __init__(self, detail: str, *, fields: Sequence[tuple[str, str]] = (), code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.fields = tuple(fields)

    @classmethod
    def field(cls, name: str, message: str, *, code: str | None = None) -> "InvalidContent":
        """One field is wrong: ``name`` is its path, ``message`` says what is wrong with it."""
        return cls(f"{name}: {message}", fields=[(name, message)], code=code)


class UnauthorizedError(RequestError):
    """Key missing or wrong."""

    code = "unauthorized"


class ForbiddenError(RequestError):
    """Key without the scope."""

    code = "forbidden"


class UnknownModel(RequestError):
    """No such model or version."""

    code = "unknown_model"


class InvalidInference(RequestError):
    """An Open Inference Protocol request that cannot be run: a name, datatype, shape, size, value or parameter."""

    code = "invalid_inference"


class LoadFailed(RequestError):
    """A model's files do not serve; what served before still does."""

    code = "load_failed"


class UnloadRefused(RequestError):
    """A model that has to stay."""

    code = "unload_refused"


class NotSupported(RequestError):
    """This service, as it is configured, does not do that."""

    code = "not_supported"


class NotAcceptable(RequestError):
    """No answer form the caller accepts."""

    code = "not_acceptable"


class UnsupportedMedia(RequestError):
    """The request's own content type or content encoding."""

    code = "unsupported_media_type"


class TooLarge(RequestError):
    """Body or picture beyond a limit."""

    code = "too_large"


class BodyTooSlow(RequestError):
    """The body did not arrive in time."""

    code = "body_too_slow"


class OverloadedError(IgnError):
    """Later it works.

    Args:
        detail: one sentence.
        retry_after: seconds until a retry is worth while, from the measured drain rate.
        code: stable code.
    """

    code = "overloaded"

    def __init__(self, detail: str, *, retry_after: float, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after = retry_after


class QueueFull(OverloadedError):
    """Rows queued would pass the limit."""

    code = "queue_full"


class WouldMissDeadline(OverloadedError):
    """The queue in the way is longer than the deadline."""

    code = "would_miss_deadline"


class RateLimited(OverloadedError):
    """Over quota."""

    code = "rate_limited"


class DeadlineError(IgnError):
    """The deadline."""

    code = "deadline"


class DeadlineExceeded(DeadlineError):
    """Passed while waiting; the rows left the queue uncomputed."""

    code = "deadline_exceeded"


class DeadlineUnreachable(DeadlineError):
    """Could not be met even on an idle service; retrying is useless."""

    code = "deadline_unreachable"


class UnavailableError(IgnError):
    """Not now.

    Args:
        detail: one sentence.
        retry_after: seconds until a retry is worth while.
        code: stable code.
    """

    code = "unavailable"

    def __init__(self, detail: str, *, retry_after: float = 1.0, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after = retry_after


class NotReady(UnavailableError):
    """Loading, or a worker being replaced."""

    code = "not_ready"


class Draining(UnavailableError):
    """Shutting down."""

    code = "draining"


class TooManyConnections(UnavailableError):
    """Connection limit reached."""

    code = "too_many_connections"


class ModelFailure(IgnError):
    """The model raised, or gave values that are not finite, on the caller's rows."""

    code = "model_failure"


class StartupError(IgnError):
    """Refuse to start; ``detail`` is the one line the operator reads (it may name paths)."""

    code = "startup"
