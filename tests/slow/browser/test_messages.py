"""The page's modules, called by themselves: what they make of numbers, beside what the service
responds.
"""

from typing import Any

import pytest

from tests.contract.harness import Service
from tests.helpers.live import ROOT
from tests.slow.browser.visit import Visit

CARD = {"range": [-1, 1], "distance_quantiles": [i / 1000 for i in range(101)]}  # 0 … 0.1


@pytest.mark.parametrize("picture", ["drawn", "page"])
def test_percentiles_are_the_services(visit: Visit, service: Service, picture: str) -> None:
    quantiles = service.get("/models/mnist").json()["distance_quantiles"]
    image = (ROOT / "docs" / "images" / f"{picture}.png").read_bytes()
    scored = service.post("/score", content=image, headers={"Content-Type": "image/png"}).json()[
        "images"
    ][0]
    assert visit.call("verdict", "percentile", scored["distance"], quantiles) == pytest.approx(
        scored["percentile"], abs=0.1
    )


@pytest.mark.parametrize(
    ("distance", "drift", "options", "said"),
    [
        (0.05, 0.01, {}, "Looked real already · moved 3 % · stable"),
        (0.0, 0.0, {}, "Looked real already · moved less than 0.1 % · stable"),
        (0.0, 0.0, {"nearlyEmpty": True}, "Little to go on · moved less than 0.1 % · stable"),
        (0.5, 0.09, {}, "Made real · moved 25 % · stable"),
        (0.5, 0.2, {}, "Not settled · moved 25 % · still moves 10 %"),
        (1.2, 0.01, {}, "Not recognised · moved 60 % · stable"),
        (0.01, 0.0, {"distance_quantiles": None}, "Made real · moved 0.5 % · stable"),
    ],
)
def test_a_verdict_is_one_line_in_one_unit(
    visit: Visit, distance: float, drift: float, options: dict[str, Any], said: str
) -> None:
    card = CARD | options  # a card without measures compares with none
    assert (
        visit.call("verdict", "verdict", {"distance": distance, "drift": drift}, card, options)
        == said
    )


@pytest.mark.parametrize(
    ("distances", "said"),
    [
        ((0, 0.01, 0.02), "After 10 steps it is still the same picture"),
        ((0, 0.01, 0.2), "After 10 steps it is another picture"),
        ((0, 0.2, 0.01), "After 10 steps it is still the same picture"),
        ((0, 0.01, 0.1), "After 10 steps it has changed a little"),
        ((0, 0.2, 0.2), "After 1 step it is another picture"),
    ],
)
def test_the_story_is_true(visit: Visit, distances: tuple[float, ...], said: str) -> None:
    points = [
        {"step": step, "from": share} for step, share in zip((0, 1, 10), distances, strict=True)
    ]
    assert said in visit.call("lasting_panel", "story", points, 0.2)
