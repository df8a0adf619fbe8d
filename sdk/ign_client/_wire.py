"""What travels, without anything that makes it travel."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic, TypeAlias, TypeVar

from ign_client._errors import InputError
from ign_client._settings import check_timeout

T_co = TypeVar("T_co", covariant=True)


class Unset(Enum):
    """Tells "not given" from None, where None means something."""

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
        fields: option → text.
        files: name and content, in order; a name may come again.
    """

    fields: Mapping[str, str]
    files: Sequence[tuple[str, bytes]]


Body: TypeAlias = bytes | MultipartBody
"""JSON text, or a form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request.

    Args:
        method, path: the path is the contract's; where the service lives is the transport's affair.
        headers: without those of the transport.
        body: JSON text, a form, or nothing.
        timeout: seconds, or None for no end.
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
        content: the whole body; of a stream that was opened, its first piece.
        rest: of such a stream, what follows.
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
        """Lower case, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T_co]):
    """One method call: what to ask, and how to read the answer.

    Args:
        path: of the contract.
        parse: from the response to what the caller gets.
        body: JSON text, a form, or nothing; nothing is a GET.
        accept: the form of the answer.
        timeout: seconds for one attempt; None for the service's own limit; not given: the client's.
        request_id: echoed by the service.
        statuses: which are answers; all others are errors.

    Raises:
        InputError: the time-out is not above 0, or the id cannot be one.
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
        if self.request_id is not None and not _REQUEST_ID.fullmatch(self.request_id):
            raise InputError(f"request_id: expected 1 to 128 of A-Z a-z 0-9 . _ -, not {self.request_id!r}")

    def request(self, default_timeout: float | None) -> Request:
        """The request of every attempt."""
        timeout = default_timeout if isinstance(self.timeout, Unset) else self.timeout
        headers = {"Accept": self.accept}
        if timeout is not None:
            # The service gives up when the client does, and computes nothing for nobody.
            headers["X-Request-Timeout"] = f"{max(timeout, 0.001):.3f}"
        if self.request_id is not None:
            headers["X-Request-ID"] = self.request_id
        if isinstance(self.body, bytes):
            headers["Content-Type"] = "application/json"
        method = "GET" if self.body is None else "POST"
        return Request(method=method, path=self.path, headers=headers, body=self.body, timeout=timeout)
