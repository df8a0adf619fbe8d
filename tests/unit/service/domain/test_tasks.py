from typing import Any

import pytest

from service.domain.tasks import StepParams


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 1, "tolerance": float("nan")}, "tolerance must be above 0"),
        ({"steps": 3, "record": (1, 1)}, "ascending and unique"),
        ({"steps": 3, "record": (-1,)}, "must lie in 0…steps"),
        ({"steps": 3, "record": (0, 4)}, "must lie in 0…steps"),
    ],
)
def test_invalid_requests_cannot_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepParams(**options)
