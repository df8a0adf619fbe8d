"""What the page says of numbers, beside what the service says."""

from typing import Any

import pytest

from tests.contract.harness import Service
from tests.helpers.live import ROOT
from tests.slow.browser.visit import Visit

CARD = {"range": [-1, 1], "distance_quantiles": [i / 1000 for i in range(101)]}  # 0 … 0.1
CALL = "async ([name, values]) => (await import('./page/verdict.js'))[name](...values)"


def words(visit: Visit, name: str, *values: Any) -> Any:
    said = visit.page.evaluate(CALL, [name, list(values)])
    return said.replace("\xa0", " ") if isinstance(said, str) else said


@pytest.mark.parametrize("picture", ["drawn", "page"])
def test_percentiles_are_the_services(visit: Visit, service: Service, picture: str) -> None:
    quantiles = service.get("/models/mnist").json()["distance_quantiles"]
    image = (ROOT / "docs" / "images" / f"{picture}.png").read_bytes()
    scored = service.post("/score", content=image, headers={"Content-Type": "image/png"}).json()["images"][0]
    assert words(visit, "percentile", scored["distance"], quantiles) == pytest.approx(scored["percentile"], abs=0.1)


@pytest.mark.parametrize(
    ("distance", "drift", "options", "said"),
    [
        (0.05, 0.01, {}, "Looked real already · moved 3 % · stable"),
        (0.0, 0.0, {}, "Looked real already · moved less than 0.1 % · stable"),
        (0.0, 0.0, {"nearlyEmpty": True}, "Little to go on · moved less than 0.1 % · stable"),
        (0.5, 0.09, {}, "Made real · moved 25 % · stable"),
        (0.5, 0.2, {}, "Not settled · moved 25 % · still moves 10 %"),
    ],
)
def test_a_verdict_is_one_line_in_one_unit(
    visit: Visit, distance: float, drift: float, options: dict[str, bool], said: str
) -> None:
    assert words(visit, "verdict", {"distance": distance, "drift": drift}, CARD, options) == said


def test_a_card_without_real_pictures_compares_with_none(visit: Visit) -> None:
    bare = CARD | {"distance_quantiles": None}
    assert words(visit, "verdict", {"distance": 0.01, "drift": 0.0}, bare, {}) == "Made real · moved 0.5 % · stable"
