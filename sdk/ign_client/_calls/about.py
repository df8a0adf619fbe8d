"""What can be asked about the service."""

from urllib.parse import quote

from ign_client import _answers
from ign_client._calls.common import call
from ign_client._errors import InputError
from ign_client._results import Card, Models, Readiness
from ign_client._wire import UNSET, Call, Timeout


def models(*, timeout: Timeout = UNSET, request_id: str | None = None) -> Call[Models]:
    """What is served, the default, and the limits of a request.

    Args:
        timeout: seconds for one attempt.
        request_id: echoed by the service.
    """
    return call("/models", _answers.models, None, timeout, request_id)


def model(name: str, *, timeout: Timeout = UNSET, request_id: str | None = None) -> Call[Card]:
    """One card, whole.

    Args:
        name: ``name``, which is its highest version, or ``name/version``.
        timeout: seconds for one attempt.
        request_id: echoed by the service.
    """
    parts = name.split("/")
    if len(parts) > 2 or not all(parts):
        raise InputError(f"name: expected name or name/version, not {name!r}")
    return call("/models/" + "/".join(quote(part, safe="") for part in parts), _answers.card, None, timeout, request_id)


def ready(*, timeout: Timeout = UNSET, request_id: str | None = None) -> Call[Readiness]:
    """Whether the service takes requests. "Not now" is an answer, not an error, and is not asked again.

    Args:
        timeout: seconds for one attempt.
        request_id: echoed by the service.
    """
    return call("/readyz", _answers.readiness, None, timeout, request_id, statuses=(200, 503))
