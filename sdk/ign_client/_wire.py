"""Requests and responses as values, independent of the HTTP library."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic, TypeAlias, TypeVar

from ign_client._errors import InputError
from ign_client._settings import check_timeout

T_co = TypeVar("T_co", covariant=True)


class Unset(Enum):
    """The type of a parameter that was not given, for parameters where None is a value."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset.UNSET
Timeout: TypeAlias = float | Unset | None

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipartBody:
    """A multipart body.

    Args:
        fields: text of each option.
        files: (name, content) of each file, in order; names may repeat.
    """

    fields: Mapping[str, str]
    files: Sequence[tuple[str, bytes]]


Body: TypeAlias = bytes | MultipartBody
"""JSON text, or a multipart form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request.

    Args:
        method, path: without the URL of the service, which the transport adds.
        headers: without User-Agent and Authorization, which the transport adds.
        body: JSON text, a multipart form, or None.
        timeout: seconds, or None for no timeout.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Body | None
    timeout: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One HTTP response.

    Args:
        status: HTTP status.
        headers: names in lower case.
        content: the whole body; for an event stream, its first chunk.
        rest: the other chunks of an event stream; else None.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)
    rest: Any = None

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-request-id")

    @property
    def media_type(self) -> str:
        """The media type in lower case, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T_co]):
    """One call of a method: the request, and the parser of the response.

    Args:
        path: of the endpoint.
        parse: converts the response to the result.
        body: JSON text, a multipart form, or None for a GET request.
        accept: media type of the response.
        timeout: seconds for one attempt; None for the limit of the service; the timeout of the client by default.
        request_id: repeated by the service in the response.
        statuses: HTTP statuses that are not errors.

    Raises:
        InputError: the timeout is not above 0, or the request id is invalid.
    """

    path: str
    parse: Callable[[Response], T_co]
    body: Body | None = None
    accept: str = "application/json"
    timeout: Timeout = UNSET
    request_id: str | None = None
    statuses: frozenset[int] = frozenset({200})

    def __post_init__(self) -> None:
        if not isinstance(self.timeout, Unset):
            check_timeout(self.timeout)
        text: object = self.request_id  # of a caller without type checks, it may be anything
        if text is not None and not (isinstance(text, str) and _REQUEST_ID.fullmatch(text)):
            raise InputError(f"request_id: expected 1 to 128 of A-Z a-z 0-9 . _ -, not {text!r}")

    def request(self, default_timeout: float | None) -> Request:
        """The request, which is the same for every attempt."""
        timeout = default_timeout if isinstance(self.timeout, Unset) else self.timeout
        headers = {"Accept": self.accept}
        if timeout is not None:
            # The service stops at the client's timeout, because nobody would read the response.
            headers["X-Request-Timeout"] = f"{max(timeout, 0.001):.3f}"
        if self.request_id is not None:
            headers["X-Request-ID"] = self.request_id
        if isinstance(self.body, bytes):
            headers["Content-Type"] = "application/json"
        method = "GET" if self.body is None else "POST"
        return Request(method=method, path=self.path, headers=headers, body=self.body, timeout=timeout)
