"""The errors of the service as one tree, by cause.

IgnError
├── RequestError               the request is wrong: the same request fails again
│   ├── MalformedRequest       not JSON, invalid multipart, invalid header value
│   ├── InvalidContent         valid syntax, but an invalid value, picture or mask
│   ├── UnauthorizedError      API key missing or unknown
│   ├── ForbiddenError         API key without the scope
│   ├── UnknownModel           no such model or version
│   ├── InvalidInference       an Open Inference Protocol request that cannot be run
│   ├── LoadFailed             the files of a model cannot be loaded or verified
│   ├── UnloadRefused          the model must not be unloaded
│   ├── NotSupported           not available in this configuration of the service
│   ├── NotAcceptable          no response format that the caller accepts
│   ├── UnsupportedMedia       content type or content encoding of the request
│   ├── TooLarge               body or picture above a limit
│   ├── BodyTooSlow            the body did not arrive in time
│   ├── HeadTooSlow            the head did not arrive in time
│   └── HeadTooLarge           request line and headers above their limit
├── OverloadedError            too many requests: a later attempt works (has retry_after)
│   ├── QueueFull              the queue would exceed its limit
│   ├── WouldMissDeadline      the queue takes longer than the deadline allows
│   └── RateLimited            rate limit of the caller exceeded
├── DeadlineError              deadline of the request
│   ├── DeadlineExceeded       passed while the request waited
│   └── DeadlineUnreachable    too short even for an idle service
├── UnavailableError           temporarily unavailable (has retry_after)
│   ├── NotReady               models are loading, or a worker is being replaced
│   ├── Draining               the service is shutting down
│   ├── TooManyConnections     too many requests in flight
│   └── TooManyBytes           too many bytes of bodies in flight
├── ModelFailure               the model raised an error or returned values that are not finite
└── StartupError               the service does not start; the text is one line for the operator

`service.api.problems` maps each class to its HTTP status in one table.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar


class IgnError(Exception):
    """Base of all errors that this service raises on purpose.

    Args:
        detail: one sentence for the caller, without paths of files and without a traceback.
        code: stable, machine-readable; the code of the class by default.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.error_code = code or type(self).code

    def __reduce__(self) -> tuple[Callable[..., "IgnError"], tuple[object, ...]]:
        """Pickle the attributes: constructors have required keyword arguments, which `Exception` does not keep."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[IgnError], args: tuple[object, ...], attributes: dict[str, object]) -> IgnError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class RequestError(IgnError):
    """The request is wrong; the same request fails again."""

    code = "bad_request"


class MalformedRequest(RequestError):
    """Not JSON, invalid multipart, or an invalid header value."""

    code = "malformed"


class InvalidContent(RequestError):
    """Valid syntax, but an invalid value, picture or mask.

    Args:
        detail: one sentence.
        fields: pairs of field path (``images.0``, ``steps``) and message.
        code: ``invalid_value`` by default.
    """

    code = "invalid_value"

    def __init__(self, detail: str, *, fields: Sequence[tuple[str, str]] = (), code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.fields = tuple(fields)

    @classmethod
    def field(cls, name: str, message: str, *, code: str | None = None) -> "InvalidContent":
        """The error for one field with path ``name``."""
        return cls(f"{name}: {message}", fields=[(name, message)], code=code)


class UnauthorizedError(RequestError):
    """API key missing or unknown."""

    code = "unauthorized"


class ForbiddenError(RequestError):
    """API key without the scope."""

    code = "forbidden"


class UnknownModel(RequestError):
    """No such model or version."""

    code = "unknown_model"


class InvalidInference(RequestError):
    """An Open Inference Protocol request with an invalid name, datatype, shape, size, value or parameter."""

    code = "invalid_inference"


class LoadFailed(RequestError):
    """The files of a model cannot be loaded or verified; the models in service stay in service."""

    code = "load_failed"


class UnloadRefused(RequestError):
    """The model must not be unloaded, because it is the default."""

    code = "unload_refused"


class NotSupported(RequestError):
    """Not available in this configuration, or not implemented by the service."""

    code = "not_supported"


class NotAcceptable(RequestError):
    """No response format that the caller accepts."""

    code = "not_acceptable"


class UnsupportedMedia(RequestError):
    """Content type or content encoding of the request."""

    code = "unsupported_media_type"


class TooLarge(RequestError):
    """Body or picture above a limit."""

    code = "too_large"


class BodyTooSlow(RequestError):
    """The body did not arrive in time."""

    code = "body_too_slow"


class HeadTooSlow(RequestError):
    """Request line and headers did not arrive in time."""

    code = "head_too_slow"


class HeadTooLarge(RequestError):
    """Request line and headers above their limit."""

    code = "head_too_large"


class OverloadedError(IgnError):
    """Too many requests; a later attempt works.

    Args:
        detail: one sentence.
        retry_after: seconds until the next attempt, estimated from the measured throughput.
        code: the code of the class by default.
    """

    code = "overloaded"

    def __init__(self, detail: str, *, retry_after: float, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after = retry_after


class QueueFull(OverloadedError):
    """The queue would exceed its limit on rows."""

    code = "queue_full"


class WouldMissDeadline(OverloadedError):
    """The queue, or other load of the machine, takes longer than the deadline allows."""

    code = "would_miss_deadline"


class RateLimited(OverloadedError):
    """The caller exceeded its rate limit."""

    code = "rate_limited"


class DeadlineError(IgnError):
    """The deadline of the request cannot be met."""

    code = "deadline"


class DeadlineExceeded(DeadlineError):
    """The deadline passed while the request waited; its rows were not computed."""

    code = "deadline_exceeded"


class DeadlineUnreachable(DeadlineError):
    """The deadline is too short even for an idle service; a retry cannot help."""

    code = "deadline_unreachable"


class UnavailableError(IgnError):
    """Temporarily unavailable.

    Args:
        detail: one sentence.
        retry_after: seconds until the next attempt.
        code: the code of the class by default.
    """

    code = "unavailable"

    def __init__(self, detail: str, *, retry_after: float = 1.0, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after = retry_after


class NotReady(UnavailableError):
    """Models are loading, or a worker is being replaced."""

    code = "not_ready"


class Draining(UnavailableError):
    """The service is shutting down."""

    code = "draining"


class TooManyConnections(UnavailableError):
    """Too many requests are in flight."""

    code = "too_many_connections"


class TooManyBytes(UnavailableError):
    """The requests in flight hold too many bytes."""

    code = "too_many_bytes"


class ModelFailure(IgnError):
    """The model raised an error, or returned values that are not finite, for the rows of this request.

    Args:
        detail: one sentence for the caller.
        reason: what the runtime said, as one line for the operator; it is logged and never in a response.
    """

    code = "model_failure"

    def __init__(self, detail: str, *, reason: str = "") -> None:
        super().__init__(detail)
        self.reason = reason or detail


class StartupError(IgnError):
    """The service does not start; ``detail`` is one line for the operator and may name files."""

    code = "startup"
