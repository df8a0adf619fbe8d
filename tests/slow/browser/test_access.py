"""Who may use the page, what it says when something fails, and whether everybody can use it."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.harness import Service, gated, serving, settings, write_models
from tests.slow.browser.visit import Visit, visiting

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

FAILED = "Failed to load resource"  # what the browser says of any failure, whatever the page makes of it


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def guarded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    digest = hashlib.sha256(b"alice-key").hexdigest()
    keys.write_text(json.dumps([{"name": "alice", "sha256": digest, "scopes": ["infer"]}]))
    with serving(settings(tiny, api_keys_file=keys), ready=False) as running:
        running.until(lambda: running.get("/readyz").status_code == 200)
        yield running


def test_everything_comes_from_the_service(visit: Visit) -> None:
    visit.draw()
    visit.button("Make it real").click()
    visit.says("real", "f moved its pixels by")
    visit.button("Generate").click()
    visit.says("generate", "16 pictures")
    assert visit.hosts - {""} == {visit.url.removeprefix("http://")}


def test_a_key_is_asked_for_and_kept_in_this_tab_only(browser: "Browser", guarded: Service) -> None:
    with visiting(browser, guarded.url) as visit:
        visit.expected.append(FAILED)
        field = visit.page.get_by_label("This service wants an API key")
        visit.one("#startup .problem").filter(has_text="This service needs an API key.").wait_for()
        field.fill("wrong")
        visit.button("Use it").click()
        visit.one("#startup .problem").filter(has_text="this key is not known").wait_for()
        field.fill("alice-key")
        visit.button("Use it").click()
        visit.one("#model:enabled").wait_for()
        assert field.is_hidden()
        visit.button("Generate").click()
        visit.says("generate", "16 pictures")
        visit.one("#generate summary").click()
        line = visit.one("#generate code").inner_text()
        assert "$IGN_API_KEY" in line
        assert "alice-key" not in visit.page.content()
        assert visit.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        visit.page.reload()
        visit.one("#model:enabled").wait_for()


def test_what_fails_is_said_in_place(visit: Visit) -> None:
    visit.expected.append(FAILED)
    visit.one("#file").set_input_files({"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"})
    problem = visit.one("#real .problem")
    problem.wait_for()
    assert problem.get_attribute("role") == "alert"
    assert re.search(r"undecodable_image · request [0-9a-f]{32}", problem.inner_text())
    visit.draw()
    visit.button("Make it real").click()
    problem.wait_for(state="hidden")


def test_what_is_no_picture_is_not_sent(visit: Visit) -> None:
    visit.one("#file").set_input_files({"name": "no.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    visit.one("#real .problem").filter(has_text="no.txt is no PNG, JPEG or WebP.").wait_for()


def refusing(status: int, headers: dict[str, str], times: int = 1) -> Any:
    """Answers the first requests with a problem, and passes the others on."""
    left = [times]

    def handle(route: "Route") -> None:
        if left[0] == 0:
            route.continue_()
            return
        left[0] -= 1
        body = {"detail": "too many rows wait", "code": "queue_full", "request_id": "abc"}
        route.fulfill(status=status, headers={"Content-Type": "application/problem+json"} | headers, json=body)

    return handle


def test_a_busy_service_says_when_to_try_again(visit: Visit) -> None:
    visit.expected.append(FAILED)
    visit.page.clock.install()
    visit.page.route("**/generate", refusing(429, {"Retry-After": "7"}))
    visit.button("Generate").click()
    problem = visit.one("#generate .problem")
    problem.filter(has_text="It can be tried again in 7 seconds.").wait_for()
    again = visit.button("Try again")
    assert again.is_disabled()
    visit.page.clock.run_for(7_000)
    again.click()
    visit.says("generate", "16 pictures")
    assert problem.is_hidden()


def test_a_service_that_is_gone_is_said_too(visit: Visit) -> None:
    visit.expected.append(FAILED)
    visit.page.route("**/project", lambda route: route.abort())
    visit.draw()
    visit.button("Make it real").click()
    visit.one("#real .problem").filter(has_text="The service cannot be reached.").wait_for()


def test_while_models_load_it_says_so_and_can_be_asked_again(
    browser: "Browser", tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gated(monkeypatch, settings(tiny), ready=False) as (service, gate), visiting(browser, service.url) as visit:
        visit.expected.append(FAILED)
        visit.one("#startup .problem").filter(has_text="not_ready").wait_for()
        assert visit.one("#real").get_attribute("inert") is not None
        gate.opened.set()
        service.until(lambda: service.get("/readyz").status_code == 200)
        visit.button("Try again").click()
        visit.ready()
        assert visit.one("#startup .problem").is_hidden()


def test_models_are_chosen_and_described(browser: "Browser", tiny: Path) -> None:
    with serving(settings(tiny)) as service, visiting(browser, service.url) as visit:
        visit.one("#model:enabled").wait_for()
        assert visit.one("#model").input_value() == "grey/10"
        visit.draw()
        visit.one("#model").select_option("colour/1")
        visit.one("#about-title").filter(has_text="colour, version 1").wait_for()
        assert visit.page.get_by_label("Ink").is_visible()
        assert visit.one("#invitation").is_hidden()  # the drawing is still there
        with visit.page.expect_response("**/project") as answered:
            visit.button("Make it real").click()
        assert answered.value.json()["model"]["name"] == "colour"
        visit.says("real", "f moved its pixels by")


# Everybody can use it

UNNAMED = """() => [...document.querySelectorAll("button, input, select, a, canvas[tabindex], img, section")]
  .filter((element) => element.checkVisibility() && !element.closest("[aria-hidden=true]"))
  .filter((element) => {
    const labelled = (element.getAttribute("aria-labelledby") ?? "").split(" ").filter(Boolean);
    const names = [element.getAttribute("aria-label"), element.textContent.trim(), element.alt,
      element.querySelector("img")?.alt,
      ...[...(element.labels ?? [])].map((label) => label.textContent.trim()),
      ...labelled.map((id) => document.getElementById(id)?.textContent.trim())];
    const decoration = element.matches("img[alt='']");
    return !decoration && !names.some(Boolean);
  })
  .map((element) => element.outerHTML.slice(0, 120))"""


def used(visit: Visit) -> None:
    """Bring everything that can be shown onto the page."""
    visit.draw()
    visit.one("#steps").fill("6")
    visit.button("Make it real").click()
    visit.says("real", "f moved its pixels by")
    visit.button("Generate").click()
    visit.says("generate", "16 pictures")
    visit.one("#tiles .tile").first.click()
    visit.button("Walk").click()
    visit.says("walk", "32 frames")


def test_everything_has_a_name(visit: Visit) -> None:
    used(visit)
    assert visit.page.evaluate(UNNAMED) == []
    ids: list[str] = visit.page.evaluate("[...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))
    for attribute in ("for", "aria-labelledby", "aria-describedby"):
        named: list[str] = visit.page.evaluate(
            "name => [...document.querySelectorAll(`[${name}]`)].map((element) => element.getAttribute(name))",
            attribute,
        )
        assert {one for value in named for one in value.split()} <= set(ids)


def test_language_headings_and_landmarks(visit: Visit) -> None:
    assert visit.one("html").get_attribute("lang") == "en"
    assert visit.one("main").count() == visit.one("h1").count() == 1
    levels = [
        int(level) for level in visit.page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName[1])")
    ]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert visit.one(".panel > .status[role=status], .panel .status[role=status]").count() >= 4


def test_the_keyboard_reaches_everything_and_it_shows(visit: Visit) -> None:
    used(visit)
    visit.page.evaluate("document.querySelector('.skip').focus()")
    reached: list[str] = []
    for _ in range(120):
        visit.page.keyboard.press("Tab")
        here = visit.page.evaluate(
            """() => {
              const element = document.activeElement;
              const shown = [element, element.nextElementSibling, ...(element.labels ?? [])].filter(Boolean);
              const outlined = shown.some((each) => getComputedStyle(each).outlineStyle !== "none");
              return [element.id || element.textContent.trim(), outlined, element === document.body];
            }"""
        )
        if here[2]:
            break
        assert here[1], f"{here[0]} does not show that it has the focus"
        reached.append(here[0])
    assert {"model", "paint", "brush", "undo", "file", "go", "live", "steps", "strength", "seed", "pause"} <= set(
        reached
    )
    assert {"Generate", "Walk", "Copy"} & set(reached)


@pytest.mark.parametrize("width", [320, 390, 820, 1440])
def test_it_fits_without_scrolling_sideways(browser: "Browser", service: Service, width: int) -> None:
    with visiting(browser, service.url, viewport={"width": width, "height": 800}) as visit:
        used(visit)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_fingers_draw_and_do_not_scroll(browser: "Browser", service: Service) -> None:
    with visiting(browser, service.url, viewport={"width": 390, "height": 800}, has_touch=True) as visit:
        visit.ready()
        empty = visit.canvas()
        visit.one("#paint").tap()
        assert (visit.canvas() != empty).any()
        assert visit.one("#paint").evaluate("canvas => getComputedStyle(canvas).touchAction") == "none"
