"""How long a result lasts, and what the page's modules say of numbers, beside what the service says."""

import re
from typing import Any

import pytest

from tests.contract.harness import Service
from tests.helpers.live import ROOT
from tests.slow.browser.visit import Route, Visit

CARD = {  # 0 … 0.1
    "range": [-1, 1],
    "distance_quantiles": [i / 1000 for i in range(101)],
    "prompt": "Draw a face, or paste a picture",
}
HOLD = """() => {
  const decode = createImageBitmap;
  window.createImageBitmap = (...source) => {
    window.createImageBitmap = decode;
    return new Promise((resolve) => (window.release = async () => {
      resolve(await decode(...source));
      await new Promise(requestAnimationFrame);
    }));
  };
}"""
MADE = "This is what the network makes of it."
VERDICTS: list[tuple[float, float, dict[str, Any], str]] = [
    (0.05, 0.01, {}, "The network leaves this nearly as it is. | Changed by 3 %; REAL."),
    (
        0.0,
        0.0,
        {"nearlyEmpty": True},
        "There is too little to go on. | Changed by less than 0.1 %; REAL.",
    ),
    (0.4, 0.07, {}, "Made real. | Changed by 20 %; REAL."),
    (
        0.5,
        0.09,
        {},
        "Not quite real yet: once more, and it changes again. | Changed by 25 %; REAL; once more, by 5 %.",
    ),
    (
        1.2,
        0.01,
        {},
        "A guess: much of the picture had to change. | Changed by 60 %; REAL.",
    ),
    (
        0.2,
        0.01,
        {"foreign": True},
        "This does not look like a face to the network. | Changed by 10 %; REAL.",
    ),
    # a card without measures compares with none
    (0.01, 0.0, {"distance_quantiles": None}, f"{MADE} | Changed by 0.5 %."),
    # a network that is not trained keeps nothing
    (
        0.4,
        0.0,
        {"distance_quantiles": [i / 100 for i in range(101)]},
        f"{MADE} | Changed by 20 %; real pictures change by 0.5 to 50 %.",
    ),
    (0.5, 0.0, {"exact": True}, f"{MADE} | Changed by 25 %; REAL."),
]


def test_a_run_is_shown_step_by_step(visit: Visit) -> None:
    visit.draw()
    visit.settled()
    visit.choose("100")
    with visit.page.expect_request("**/project") as asked:
        visit.button("Run").click()
    visit.one("#lasting .status").filter(has_text=re.compile("after 100|After 100")).wait_for()
    assert "event-stream" in asked.value.headers["accept"]
    recorded = visit.call("lasting_panel", "recordedSteps", 100)
    assert visit.one("#strip img").count() == len(recorded)
    assert visit.one("#strip img").first.get_attribute("src") == visit.one("#made").get_attribute(
        "src"
    )
    chart = visit.page.get_by_role("img", name=visit.one("#lasting .status").inner_text())
    assert chart.locator("path.from").count() == chart.locator("path.by").count() == 1
    visit.draw([(0.3, 0.5), (0.7, 0.55)])
    visit.settled()
    assert visit.one("#lasting").get_attribute("data-stale") is not None


def test_a_long_run_can_be_stopped(visit: Visit) -> None:
    visit.draw()
    visit.settled()
    unanswered: list[Route] = []
    visit.page.route("**/project", lambda route: unanswered.append(route))
    visit.button("Run").click()
    visit.button("Stop").click()
    visit.button("Stop").wait_for(state="hidden")
    assert visit.one("#lasting").get_attribute("aria-busy") is None
    # else asyncio logs an error about Playwright's task when the collector finds it
    for route in unanswered:
        route.abort()


def test_what_comes_late_of_an_old_run_is_not_shown(visit: Visit) -> None:
    visit.draw()
    visit.settled()
    made = visit.one("#made").get_attribute("src")
    visit.page.evaluate(HOLD)
    visit.button("Run").click()
    visit.page.wait_for_function("() => window.release")
    visit.choose("Clothes")
    visit.one("#about-name").filter(has_text="fashion_mnist").wait_for()
    visit.page.evaluate("() => window.release()")
    late = "made => [...document.querySelectorAll('#strip img')].some(({ src }) => src === made)"
    assert not visit.page.evaluate(late, made)


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


def test_a_verdict_is_a_sentence_with_numbers_in_one_unit(visit: Visit) -> None:
    for distance, drift, options, said in VERDICTS:
        measured = {"distance": distance, "drift": drift}
        verdict = visit.call("verdict", "verdict", measured, CARD | options, options)
        shown = f"{verdict['words']} | {verdict['numbers']}".replace("\xa0", " ")
        assert shown == said.replace("REAL", "real pictures change by 0.1 to 5 %")
