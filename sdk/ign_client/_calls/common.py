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

_MEDIA: Final = {form: media for media, form in _answers.FORMATS.items()} | {EVENTS: EVENTS}


def call(
    path: str,
    parse: Callable[[Response], T],
    body: Body | None,
    timeout: Timeout,
    request_id: str | None,
    form: str | None = None,
    statuses: tuple[int, ...] = (200,),
) -> Call[T]:
    """Build a call.

    Args:
        path, parse, body, timeout, request_id: as for `Call`.
        form: format of the response; None for JSON.
        statuses: HTTP statuses that are not errors.

    Raises:
        InputError: an unknown format, an invalid timeout or an invalid request id.
    """
    if form is not None and form not in _MEDIA:
        raise InputError(f"form: expected one of {', '.join(_answers.FORMATS.values())}, not {form!r}")
    accept = "application/json" if form is None else _MEDIA[form]
    return Call(
        path=path,
        parse=parse,
        body=body,
        accept=accept,
        timeout=timeout,
        request_id=request_id,
        statuses=frozenset(statuses),
    )
