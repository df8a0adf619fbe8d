"""How long a result lasts, as the page shows it beside what the service says."""

import re

from tests.slow.browser.visit import Route, Visit


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
