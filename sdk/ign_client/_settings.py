"""Settings of a client, from arguments or from the environment. No other module reads the
environment.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from ign_client._errors import InputError

DEFAULT_BASE_URL: Final = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S: Final = 30.0
_MAX_TIMEOUT_S: Final = 1e8
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a client, as `Client` describes them. The API key is not part of the repr."""

    base_url: str
    api_key: str | None = field(repr=False)
    timeout: float | None
    deadline: float | None
    max_retries: int | None
    clock: Callable[[], float]
    jitter: Callable[[], float]

    def __post_init__(self) -> None:
        check_seconds("timeout", self.timeout)
        check_seconds("deadline", self.deadline)
        if self.max_retries is not None and self.max_retries < 0:
            raise InputError(f"max_retries: expected 0 or more, or None, not {self.max_retries}")


def resolve(base_url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """URL and key from arguments, or else from `IGN_BASE_URL` and `IGN_API_KEY`; empty variables
    are ignored.
    """
    url = (base_url or os.environ.get("IGN_BASE_URL") or DEFAULT_BASE_URL).rstrip("/")
    key = api_key or os.environ.get("IGN_API_KEY") or None
    _check_url(url)
    if key is not None and not _VISIBLE.fullmatch(key):
        raise InputError("api_key: must be visible ASCII characters without spaces")
    return url, key


def check_seconds(name: str, seconds: float | None) -> None:
    """Raise `InputError` unless an option is a number of seconds above 0, or None."""
    if seconds is not None and not 0 < seconds <= _MAX_TIMEOUT_S:
        raise InputError(
            f"{name}: expected seconds above 0 and up to {_MAX_TIMEOUT_S:.0e}, or None, not "
            f"{seconds!r}"
        )


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as a port that is no number
        valid = False
    if not valid or parts.query or parts.fragment or parts.username or not _VISIBLE.fullmatch(url):
        raise InputError(
            "base_url: expected an http or https URL without a user, such as http://127.0.0.1:8000"
        )
