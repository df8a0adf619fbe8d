"""The errors of the service as one tree, by cause.

IgnError
├── RequestError          the request is wrong: the same request fails again
├── TemporaryError        a later attempt works (has retry_after)
│   ├── OverloadedError   too many requests
│   └── UnavailableError  starting, stopping or full
├── DeadlineError         the deadline of the request cannot be met
├── ModelFailure          the model failed on the rows of the request
└── StartupError          the service does not start

`service.api.problems` maps each class to its HTTP status in one table.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

# Kind of a failed validation → what the user reads. Kinds such as `int_parsing` and `int_type`
# share the first word.
_REASONS: Final = {
    "extra_forbidden": "unknown field",
    "missing": "required",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "too_short": "needs at least {min_length}, not {actual_length}",
    "too_long": "takes at most {max_length}",
    "string_too_long": "takes at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "bool": "must be true or false",
    "dict": "must be an object",
    "finite": "must be a finite number",
    "float": "must be a number",
    "int": "must be a whole number",
    "list": "must be a list",
    "model": "must be an object",
    "string": "must be a text",
    "tuple": "must be a list",
}


def reason_of(error: Mapping[str, Any]) -> str:
    """What is wrong with a value, of one error in the `errors()` of pydantic's ValidationError."""
    kind = error["type"]
    text = _REASONS.get(kind) or _REASONS.get(kind.partition("_")[0])
    if text is None:
        return (
            str(error["msg"])
            .removeprefix("Value error, ")
            .replace("Input should", "must")
            .removeprefix("Input ")
        )
    bounds = error.get("ctx", {}).items()
    return text.format(
        **{name: int(n) if isinstance(n, float) and n.is_integer() else n for name, n in bounds}
    )


def first_error(exc: Any, whole: str = "") -> str:
    """Where and why a value is invalid, of the first error in pydantic's ValidationError; ``whole``
    is what the whole value is called.
    """
    first = exc.errors(include_url=False, include_input=False)[0]
    parts = (f"entry {part + 1}" if isinstance(part, int) else part for part in first["loc"][::-1])
    where = " of ".join(parts) or whole
    return f"{where}: {reason_of(first)}" if where else reason_of(first)


class IgnError(Exception):
    """Base of all errors that this service raises on purpose.

    ``detail`` is one sentence for the caller, without paths of files and without a traceback. The
    code is stable and machine-readable. Each class names its own, and an instance may have a more
    special one. Errors can be pickled, so every argument but ``detail`` has a default.
    """

    code: ClassVar[str] = "internal"

    def __init_subclass__(cls, *, code: str = "") -> None:
        cls.code = code or cls.code

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.error_code = code or type(self).code


class RequestError(IgnError, code="bad_request"):
    """The request is wrong; the same request fails again."""


class MalformedRequest(RequestError, code="malformed"):
    """Not JSON, invalid multipart, or an invalid header value."""


class InvalidContent(RequestError, code="invalid_value"):
    """Valid syntax, but an invalid value, image or mask; ``fields`` are pairs of path
    (``images.0``) and message.
    """

    def __init__(
        self, detail: str, *, fields: Sequence[tuple[str, str]] = (), code: str | None = None
    ) -> None:
        super().__init__(detail, code=code)
        self.fields = tuple(fields)

    @classmethod
    def field(cls, name: str, message: str, *, code: str | None = None) -> "InvalidContent":
        """The error for one field with path ``name``."""
        return cls(f"{name}: {message}", fields=[(name, message)], code=code)


class UnauthorizedError(RequestError, code="unauthorized"):
    """API key missing or unknown."""


class ForbiddenError(RequestError, code="forbidden"):
    """API key without the scope, or a page of another site."""


class UnknownModel(RequestError, code="unknown_model"):
    """No such model or version."""


class InvalidInference(RequestError, code="invalid_inference"):
    """An Open Inference Protocol request with an invalid name, datatype, shape, size, value or
    parameter.
    """


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
    """Body or image above a limit."""


class BodyTooSlow(RequestError, code="body_too_slow"):
    """The body did not arrive in time."""


class HeadTooSlow(RequestError, code="head_too_slow"):
    """Request line and headers did not arrive in time."""


class HeadTooLarge(RequestError, code="head_too_large"):
    """Request line and headers above their limit."""


class TemporaryError(IgnError):
    """A later attempt works, after ``retry_after`` seconds."""

    def __init__(self, detail: str, *, retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class OverloadedError(TemporaryError, code="overloaded"):
    """Too many requests; ``retry_after`` is predicted from the measured throughput."""


class QueueFull(OverloadedError, code="queue_full"):
    """The queue would exceed its limit on rows."""


class OverShare(OverloadedError, code="over_share"):
    """The caller holds as much of a resource as it may while others need some."""


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


class UnavailableError(TemporaryError, code="unavailable"):
    """The service cannot take the request now."""


class NotReady(UnavailableError, code="not_ready"):
    """Models are loading, a device is lost, or the model would not open before the deadline."""


class Draining(UnavailableError, code="draining"):
    """The service is shutting down."""


class TooManyConnections(UnavailableError, code="too_many_connections"):
    """Too many requests are in flight."""


class TooManyBytes(UnavailableError, code="too_many_bytes"):
    """The requests in flight hold too many bytes."""


class ModelFailure(IgnError, code="model_failure"):
    """The model raised an error, or returned values that are not finite, for the rows of this
    request.

    ``reason`` is what the runtime said, as one line for the operator; it is logged and never in a
    response.
    """

    def __init__(self, detail: str, *, reason: str = "") -> None:
        super().__init__(detail)
        self.reason = reason or detail


class StartupError(IgnError, code="startup"):
    """The service does not start; ``detail`` is one line for the operator and may name files."""


def printable(text: str) -> str:
    """A foreign text with escapes in place of what controls a terminal or ends a line."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


@contextmanager
def wrap_errors(prefix: str) -> Iterator[None]:
    """Put ``prefix``, such as a file name, before the text of a `StartupError`."""
    try:
        yield
    except StartupError as exc:
        raise StartupError(f"{prefix}: {exc.detail}") from exc


def forget_frames(exc: BaseException | None) -> None:
    """Drop the frames of an exception that has been handled, and of those that led to it.

    A frame holds the arrays of its request, and often the exception, which holds the frame: such a
    cycle would stay until the next garbage collection, and these are rare.
    """
    while exc is not None:
        exc.__traceback__ = None
        exc = exc.__cause__ or exc.__context__
