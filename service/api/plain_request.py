"""What makes a request plain, and what its endpoint does with it; `service.api.fast_path` answers plain requests."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from service.api.http.request_context import ApiRequest
from service.domain.errors import IgnError
from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams
from service.models.registry import ServedModel

_MAX_DIGITS: Final = 10  # of a Content-Length
_CONNECTION: Final = frozenset((b"close", b"keep-alive"))
PLAIN_NAMES: Final = frozenset(
    b"accept accept-encoding accept-language authorization cache-control connection content-length content-type cookie "
    b"dnt forwarded host inference-header-content-length pragma referer sec-fetch-dest sec-fetch-mode sec-fetch-site "
    b"user-agent via x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip x-request-id "
    b"x-request-timeout".split()
)
"""Headers that a plain request may have, each once: those that endpoints read, and usual ones that nobody reads."""

Respond = Callable[[Sequence[tuple[Any, FloatRows, Result]]], list[tuple[dict[str, str], bytes, str]]]


class Work(Protocol):
    """What a request asks of a model, after its options have been checked."""

    api: ApiRequest

    model: ServedModel
    count: int
    """Number of rows."""
    steps: int
    """Steps of each row."""

    def scheduling(self, inputs: Any) -> SchedulingParams:
        """The request as the scheduler sees it, with inputs from `Stages.decode`."""
        ...

    def error(self, exc: IgnError) -> IgnError:
        """The error of the response for an error of the scheduler."""
        ...


def is_small(work: Any) -> bool:
    """Whether no part of the work needs a thread of the codec pool or a stream."""
    small = getattr(work, "is_small", None)
    return not (work.is_large or work.is_large_decode) if small is None else bool(small)


class Stages(NamedTuple):
    """The stages of several requests.

    Args:
        decode: makes the inputs of each, which have an attribute `rows`, or the error of one that has none.
        respond: headers, body and media type of each response.
    """

    decode: Callable[[Sequence[Any]], Sequence[Any]]
    respond: Respond


class FastEndpoint(NamedTuple):
    """An endpoint for small requests.

    Args:
        template: of its path.
        match: matches a path.
        parse: the work of a request with this body and these path parameters; it changes only the state of the request.
            Returns None, or raises anything, for a request that is to be replayed. So is one whose work is not small,
            unless there is no room for its rows.
        stages: the other stages.
    """

    template: str
    match: Callable[[str], re.Match[str] | None]
    parse: Callable[[ApiRequest, bytes, Mapping[str, str]], Work | None]
    stages: Stages


@dataclass(slots=True, eq=False)
class Head:
    """The head of a plain request.

    Args:
        endpoint: that is asked.
        parameters: of the path.
        path: decoded.
        query: without the question mark.
        fields: of the header, by name in lower case.
    """

    endpoint: FastEndpoint
    parameters: Mapping[str, str]
    path: str
    query: bytes
    fields: dict[bytes, bytes]

    def get(self, key: str, default: str | None = None) -> Any:
        """See `HeaderFields`."""
        value = self.fields.get(key.lower().encode("latin-1"))
        return default if value is None else value.decode("latin-1")

    def getlist(self, key: str) -> list[str]:
        """See `HeaderFields`."""
        value = self.fields.get(key.lower().encode("latin-1"))
        return [] if value is None else [value.decode("latin-1")]


class PlainRequest(Protocol):
    """What the server gives for a plain request."""

    head: Head
    body: bytes
    peer: str | None
    arrival: float
    disconnected: bool
    call: Any
    """For `FastPath`."""

    def replay(self) -> None:
        """Pass the request on to the ASGI application."""
        ...

    def answer(self, status: int, headers: bytes, body: bytes, *, close: bool = False) -> None:
        """Write the response, unless the client has gone.

        Args:
            status: of the response.
            headers: its lines.
            body: of the response.
            close: close the connection afterwards; ``headers`` say so.
        """
        ...


def plain_head(
    found: tuple[FastEndpoint, Mapping[str, str]],
    path: bytes,
    query: bytes,
    fields: Sequence[tuple[bytes, bytes]],
    *,
    names: frozenset[bytes],
    max_body: int,
) -> Head | None:
    """The head of a plain request; None if a part of it is unusual.

    Args:
        found: the endpoint and the parameters of its path.
        path: of the request, without the query.
        query: without the question mark.
        fields: of the header, with names in lower case.
        names: headers that a plain request may have.
        max_body: most bytes of its body.
    """
    by_name = dict(fields)
    length = by_name.get(b"content-length", b"")
    if (
        len(by_name) != len(fields)
        or not by_name.keys() <= names
        or not (length.isdigit() and len(length) < _MAX_DIGITS and int(length) <= max_body)
        or by_name.get(b"connection", b"close").lower() not in _CONNECTION
        or b"#" in query
    ):
        return None
    endpoint, parameters = found
    return Head(endpoint, parameters, path.decode("ascii"), query, by_name)
