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

from collections.abc import Sequence
from typing import Any, ClassVar


class IgnError(Exception):
    """Base of all errors that this service raises on purpose.

    ``detail`` is one sentence for the caller, without paths of files and without a traceback. The code is stable and
    machine-readable. Each class names its own, and an instance may have a more special one.
    """

    code: ClassVar[str] = "internal"

    def __init_subclass__(cls, *, code: str = "") -> None:
        cls.code = code or cls.code

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.error_code = code or type(self).code

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the constructor, whose keyword arguments `Exception` does not pickle.
        return _new, (type(self), *self.args), self.__dict__


def _new(kind: type[IgnError], *args: object) -> IgnError:
    return kind.__new__(kind, *args)


class RequestError(IgnError, code="bad_request"):
    """The request is wrong; the same request fails again."""


class MalformedRequest(RequestError, code="malformed"):
    """Not JSON, invalid multipart, or an invalid header value."""


class InvalidContent(RequestError, code="invalid_value"):
    """Valid syntax, but an invalid value, picture or mask; ``fields`` are pairs of path (``images.0``) and message."""

    def __init__(self, detail: str, *, fields: Sequence[tuple[str, str]] = (), code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.fields = tuple(fields)

    @classmethod
    def field(cls, name: str, message: str, *, code: str | None = None) -> "InvalidContent":
        """The error for one field with path ``name``."""
        return cls(f"{name}: {message}", fields=[(name, message)], code=code)


class UnauthorizedError(RequestError, code="unauthorized"):
    """API key missing or unknown."""


class ForbiddenError(RequestError, code="forbidden"):
    """API key without the scope."""


class UnknownModel(RequestError, code="unknown_model"):
    """No such model or version."""


class InvalidInference(RequestError, code="invalid_inference"):
    """An Open Inference Protocol request with an invalid name, datatype, shape, size, value or parameter."""


class LoadFailed(RequestError, code="load_failed"):
    """The files of a model cannot be loaded or verified; the models in service stay in service."""


class UnloadRefused(RequestError, code="unload_refused"):
    """The model must not be unloaded, because it is the default."""


class NotSupported(RequestError, code="not_supported"):
    """Not available in this configuration, or not implemented by the service."""


class NotAcceptable(RequestError, code="not_acceptable"):
    """No response format that the caller accepts."""


class UnsupportedMedia(RequestError, code="unsupported_media_type"):
    """Content type or content encoding of the request."""


class TooLarge(RequestError, code="too_large"):
    """Body or picture above a limit."""


class BodyTooSlow(RequestError, code="body_too_slow"):
    """The body did not arrive in time."""


class HeadTooSlow(RequestError, code="head_too_slow"):
    """Request line and headers did not arrive in time."""


class HeadTooLarge(RequestError, code="head_too_large"):
    """Request line and headers above their limit."""


class OverloadedError(IgnError, code="overloaded"):
    """Too many requests; a later attempt works after ``retry_after`` seconds, by the measured throughput."""

    def __init__(self, detail: str, *, retry_after: float, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after = retry_after


class QueueFull(OverloadedError, code="queue_full"):
    """The queue would exceed its limit on rows."""


class WouldMissDeadline(OverloadedError, code="would_miss_deadline"):
    """The queue, or other load of the machine, takes longer than the deadline allows."""


class RateLimited(OverloadedError, code="rate_limited"):
    """The caller exceeded its rate limit."""


class DeadlineError(IgnError, code="deadline"):
    """The deadline of the request cannot be met."""


class DeadlineExceeded(DeadlineError, code="deadline_exceeded"):
    """The deadline passed while the request waited; its rows were not computed."""


class DeadlineUnreachable(DeadlineError, code="deadline_unreachable"):
    """The deadline is too short even for an idle service; a retry cannot help."""


class UnavailableError(IgnError, code="unavailable"):
    """Temporarily unavailable; ``retry_after`` are seconds until the next attempt."""

    def __init__(self, detail: str, *, retry_after: float = 1.0, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after = retry_after


class NotReady(UnavailableError, code="not_ready"):
    """Models are loading, or a worker is being replaced."""


class Draining(UnavailableError, code="draining"):
    """The service is shutting down."""


class TooManyConnections(UnavailableError, code="too_many_connections"):
    """Too many requests are in flight."""


class TooManyBytes(UnavailableError, code="too_many_bytes"):
    """The requests in flight hold too many bytes."""


class ModelFailure(IgnError, code="model_failure"):
    """The model raised an error, or returned values that are not finite, for the rows of this request.

    ``reason`` is what the runtime said, as one line for the operator; it is logged and never in a response.
    """

    def __init__(self, detail: str, *, reason: str = "") -> None:
        super().__init__(detail)
        self.reason = reason or detail


class StartupError(IgnError, code="startup"):
    """The service does not start; ``detail`` is one line for the operator and may name files."""
