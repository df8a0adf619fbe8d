from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from service.domain.tasks import SchedulingParams, StepParams


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1},
        {"steps": 300_000, "tolerance": 1e-12, "score": True},
        {"steps": 3, "record": (0,)},
        {"steps": 3, "record": (0, 1, 2, 3)},
        {"steps": 3, "record": (3,)},
    ],
)
def test_valid_requests(options: dict[str, Any]) -> None:
    step_params = StepParams(**options)
    assert SchedulingParams(step_params=step_params).step_params is step_params


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": -5}, "steps must be at least 1"),
        ({"steps": 1, "tolerance": 0.0}, "tolerance must be above 0"),
        ({"steps": 1, "tolerance": -1.0}, "tolerance must be above 0"),
        ({"steps": 1, "tolerance": float("nan")}, "tolerance must be above 0"),
        ({"steps": 3, "record": (1, 1)}, "ascending and unique"),
        ({"steps": 3, "record": (2, 1)}, "ascending and unique"),
        ({"steps": 3, "record": (-1,)}, "must lie in 0…steps"),
        ({"steps": 3, "record": (0, 4)}, "must lie in 0…steps"),
    ],
)
def test_invalid_requests_cannot_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepParams(**options)


def test_requests_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        StepParams(steps=1).steps = 2  # type: ignore[misc] # which is what mypy says too
