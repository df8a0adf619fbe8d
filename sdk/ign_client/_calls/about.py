"""`/models` and `/readyz`."""

from __future__ import annotations  # so that signatures show the names of types, not what they stand for

from urllib.parse import quote

from ign_client import _answers
from ign_client._calls.common import call
from ign_client._errors import InputError
from ign_client._results import Card, Models, Readiness
from ign_client._wire import UNSET, Call, Timeout


def models(*, timeout: Timeout = UNSET, request_id: str | None = None) -> Call[Models]:
    """The models in service, the default model, and the limits of a request.

    Args:
        timeout: seconds for one attempt.
        request_id: repeated by the service in the response.
    """
    return call("/models", _answers.models, None, timeout, request_id)


def model(name: str, *, timeout: Timeout = UNSET, request_id: str | None = None) -> Call[Card]:
    """The complete card of one model.

    Args:
        name: ``name`` for the highest version, or ``name/version``.
        timeout: seconds for one attempt.
        request_id: repeated by the service in the response.
    """
    parts = name.split("/")
    if len(parts) > 2 or not all(parts):
        raise InputError(f"name: expected name or name/version, not {name!r}")
    return call("/models/" + "/".join(quote(part, safe="") for part in parts), _answers.card, None, timeout, request_id)


def ready(*, timeout: Timeout = UNSET, request_id: str | None = None) -> Call[Readiness]:
    """Whether the service accepts requests. Status 503 is a result here: it is neither raised nor retried.

    Args:
        timeout: seconds for one attempt.
        request_id: repeated by the service in the response.
    """
    return call("/readyz", _answers.readiness, None, timeout, request_id, statuses=(200, 503))
