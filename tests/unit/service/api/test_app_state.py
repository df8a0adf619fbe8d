"""What the endpoints ask before they serve."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.api.app_state import AppState
from service.domain.errors import NotReady


def found(**scheduler: bool) -> AppState:
    rest = dict.fromkeys(("settings", "repository", "engine", "codec", "metrics"), cast(Any, None))
    lineup = SimpleNamespace(schedulers={"digits/1": SimpleNamespace(**scheduler)})
    traffic = SimpleNamespace(draining=False)
    return AppState(lineup=cast(Any, lineup), traffic=cast(Any, traffic), phase="serving", **rest)


def test_a_lost_device_is_not_one_that_comes_back() -> None:
    found(lost=False, healthy=True).require_ready()
    with pytest.raises(NotReady, match="the worker of digits/1 is being replaced"):
        found(lost=False, healthy=False).require_ready()
    with pytest.raises(NotReady, match="the device of digits/1 is lost, and only another process has it back"):
        found(lost=True, healthy=False).require_ready()
