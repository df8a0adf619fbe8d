"""What readiness says of one model's scheduler."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.api.app_state import AppState
from service.domain.errors import Draining, NotReady


def state(*, draining: bool = False, **scheduler: object) -> AppState:
    rest = dict.fromkeys(("settings", "codec", "metrics"), cast(Any, None))
    registry = SimpleNamespace(models={"digits/1": SimpleNamespace(scheduler=SimpleNamespace(**scheduler))})
    in_flight = SimpleNamespace(draining=draining)
    return AppState(registry=cast(Any, registry), in_flight=cast(Any, in_flight), phase="serving", **rest)


def test_readiness_names_the_model_and_tells_a_lost_device_from_a_replaced_worker() -> None:
    assert state(all_devices_lost=False, healthy=True).ready
    with pytest.raises(NotReady, match="digits/1 is being replaced"):
        state(all_devices_lost=False, healthy=False).require_ready()
    with pytest.raises(NotReady, match=r"digits/1 is lost.*CUDA failure 700"):
        state(all_devices_lost=True, healthy=False, device_error="CUDA failure 700").require_ready()


def test_an_unhealthy_model_does_not_stop_the_service() -> None:
    state(all_devices_lost=False, healthy=False).require_serving()
    with pytest.raises(Draining):
        state(draining=True, all_devices_lost=False, healthy=True).require_serving()
