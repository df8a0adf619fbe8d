"""How long a result lasts, as the page shows it beside what the service says."""

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.slow.browser.visit import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Route

CALL = "async ([file, name, values]) => (await import(`./page/${file}.js`))[name](...values)"


def call(visit: Visit, file: str, name: str, *values: Any) -> Any:
    return visit.page.evaluate(CALL, [file, name, list(values)])


def test_a_run_is_shown_step_by_step(visit: Visit) -> None:
    visit.draw()
    visit.settled()
    visit.choose("100")
    with visit.page.expect_request("**/project") as asked:
        visit.button("Run").click()
    visit.one("#lasting .status").filter(has_text=re.compile("after 100|After 100")).wait_for()
    assert "event-stream" in asked.value.headers["accept"]
    recorded = call(visit, "lasting_panel", "recordedSteps", 100)
    assert visit.one("#strip img").count() == len(recorded)
    assert visit.one("#strip img").first.get_attribute("src") == visit.one("#made").get_attribute("src")
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
    for route in unanswered:  # else asyncio logs an error about Playwright's task when the collector finds it
        route.abort()


@pytest.mark.parametrize("steps", [1, 2, 16, 100, 1000])
def test_recorded_steps_ascend_to_the_last(visit: Visit, steps: int) -> None:
    recorded = call(visit, "lasting_panel", "recordedSteps", steps)
    assert recorded == sorted(set(recorded))
    assert (recorded[0], recorded[-1]) == (0, steps)
    assert len(recorded) <= 64


@pytest.mark.parametrize(
    ("distances", "said"),
    [
        ((0, 0.01, 0.02), "After 10 steps it is still the same picture"),
        ((0, 0.01, 0.2), "It lasts 1 step, then changes"),
        ((0, 0.2, 0.01), "It changes at once"),
    ],
)
def test_the_story_is_true(visit: Visit, distances: tuple[float, ...], said: str) -> None:
    points = [{"step": step, "from": share} for step, share in zip((0, 1, 10), distances, strict=True)]
    assert said in call(visit, "lasting_panel", "story", points, 0.2)
