"""What the page says of numbers, beside what the service says."""

from typing import Any

import pytest

from tests.contract.harness import Service
from tests.helpers.live import ROOT
from tests.slow.browser.visit import Visit

CARD = {"range": [-1, 1], "distance_quantiles": [i / 1000 for i in range(101)]}  # 0 … 0.1
CALL = "async ([name, values]) => (await import('./page/messages.js'))[name](...values)"


def words(visit: Visit, name: str, *values: Any) -> Any:
    return visit.page.evaluate(CALL, [name, list(values)])


@pytest.mark.parametrize("picture", ["drawn", "noisy", "digits"])
def test_percentiles_are_the_services(visit: Visit, service: Service, picture: str) -> None:
    quantiles = service.get("/models/mnist").json()["distance_quantiles"]
    image = (ROOT / "docs" / "images" / f"{picture}.png").read_bytes()
    scored = service.post("/score", content=image, headers={"Content-Type": "image/png"}).json()["images"][0]
    assert words(visit, "percentile", scored["distance"], quantiles) == pytest.approx(scored["percentile"], abs=0.1)


@pytest.mark.parametrize(
    ("distance", "said"),
    [
        (0.0, "less than nearly all real pictures: it looked real already"),
        (0.05, "by 3 % on average, more than 50 of 100 real pictures: it looked real already"),
        (0.09, "more than 90 of 100 real pictures: within what real ones do"),
        (0.0995, "more than 99 of 100 real pictures."),
        (0.5, "by 25 % on average, more than any of the real pictures it was tested with."),
    ],
)
def test_how_far_f_moved_it(visit: Visit, distance: float, said: str) -> None:
    assert said in words(visit, "distanceMessage", distance, CARD)


def test_a_card_without_real_pictures_compares_with_none(visit: Visit) -> None:
    bare = CARD | {"distance_quantiles": None}
    assert words(visit, "distanceMessage", 0.01, bare) == "f moved its pixels by 0.5 % on average."


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        (0.05, "Once more would move it by 3 %: it is at rest."),
        (0.06, "Once more would move it by 3 %, 5.0 times less."),
        (0.2, "Once more would move it by 10 %: f is not sure of it."),
    ],
)
def test_how_settled_it_is(visit: Visit, drift: float, said: str) -> None:
    assert words(visit, "driftMessage", drift, 0.3, CARD) == said
