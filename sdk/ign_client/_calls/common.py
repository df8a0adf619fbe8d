"""Option types, and the function that builds a `Call`."""

from collections.abc import Callable
from typing import Final, Literal, TypeAlias, TypeVar

from ign_client import _answers
from ign_client._errors import InputError
from ign_client._events import EVENTS
from ign_client._wire import Body, Call, Response, Timeout

T = TypeVar("T")

Format: TypeAlias = Literal["png", "jpeg", "webp", "npy"]
PathForm: TypeAlias = Literal["png", "jpeg", "webp", "npy", "gif", "apng"]
Resample: TypeAlias = Literal["nearest", "smooth"]
Resize: TypeAlias = Literal["fit", "crop", "stretch"]
Invert: TypeAlias = bool | Literal["auto"]

_JSON: Final = "application/json"
_MEDIA: Final = {form: media for media, form in _answers.FORMATS.items()} | {EVENTS: EVENTS, _JSON: _JSON}


def call(
    path: str,
    parse: Callable[[Response], T],
    body: Body | None,
    timeout: Timeout,
    request_id: str | None,
    form: str = _JSON,
    statuses: tuple[int, ...] = (200,),
) -> Call[T]:
    """Build a call.

    Args:
        path, parse, body, timeout, request_id: as for `Call`.
        form: format of the response, or the media type of events or JSON.
        statuses: HTTP statuses that are not errors.

    Raises:
        InputError: an unknown format, an invalid timeout or an invalid request id.
    """
    if form not in list(_MEDIA):  # of a caller without type checks, it may be unhashable
        raise InputError(f"form: expected one of {', '.join(_answers.FORMATS.values())}, not {form!r}")
    return Call(
        path=path,
        parse=parse,
        body=body,
        accept=_MEDIA[form],
        timeout=timeout,
        request_id=request_id,
        statuses=frozenset(statuses),
    )
