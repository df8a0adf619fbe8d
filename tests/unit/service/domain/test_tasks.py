from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from service.domain.tasks import StepParams


@pytest.mark.parametrize(
    "options",
    [{"steps": 300_000, "tolerance": 1e-12, "score": True}, {"steps": 3, "record": (0, 1, 2, 3)}],
)
def test_valid_requests_do_not_change(options: dict[str, Any]) -> None:
    with pytest.raises(FrozenInstanceError):
        StepParams(**options).steps = 2  # type: ignore[misc] # which is what mypy says too


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 1, "tolerance": 0.0}, "tolerance must be above 0"),
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
