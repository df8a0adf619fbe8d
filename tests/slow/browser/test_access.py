"""Who may use the page, what it says when something fails, and whether everybody can use it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.harness import Service, gated, serving, settings, write_keys, write_models
from tests.helpers.live import ROOT, SHIPPED
from tests.slow.browser.visit import Browser, Route, Visit, visiting

# what the browser says of any failure, whatever the page makes of it
FAILED = "Failed to load resource"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def guarded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    keys = write_keys(tmp_path_factory.mktemp("keys"), {"alice": "infer"})
    with serving(settings(tiny, api_keys_file=keys)) as running:
        yield running


def test_a_key_is_asked_for_and_kept_in_this_tab_only(browser: Browser, guarded: Service) -> None:
    with visiting(browser, guarded.url) as visit:
        visit.expected.append(FAILED)
        field = visit.page.get_by_label("This service wants an API key")
        field.fill("wrong")
        visit.button("Use it").first.click()
        visit.page.get_by_role("alert").filter(has_text="this key is not known").wait_for()
        assert visit.one("#toasts > *").count() == 0  # the form says it
        field.fill("alice-key")
        visit.button("Use it").first.click()
        visit.ready()
        assert field.is_hidden()
        visit.says("generate", "16 pictures")
        visit.one("#generate summary").click()
        line = visit.one("#generate code").inner_text()
        assert "$IGN_API_KEY" in line
        assert "alice-key" not in visit.page.content()
        assert visit.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        visit.page.reload()
        visit.ready()


def test_what_fails_is_said_over_the_page(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 390, "height": 800})
    visit.expected.append(FAILED)
    visit.says("generate", "16 pictures")
    visit.page.route("**/generate", refusing(500, {}))
    visit.button("Generate").click()
    toast = visit.toast("too many rows wait")
    assert toast.get_attribute("role") == "alert"
    assert "queue_full · request abc" in toast.inner_text()
    box = toast.get_by_role("button", name="Close").bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 390
    toast.get_by_role("button", name="Try again").click()
    visit.says("generate", "16 pictures")
    assert toast.count() == 0
    visit.page.route("**/project", lambda route: route.abort())
    visit.draw()
    visit.toast("The service cannot be reached.")


def test_a_drawing_outlasts_a_reload_and_a_lost_network(visit: Visit) -> None:
    visit.draw()
    visit.settled()
    visit.page.wait_for_function("() => location.hash.includes('d=')")
    drawn = visit.canvas().astype("int64")
    visit.page.reload()
    visit.settled()
    assert abs(visit.canvas() - drawn).mean() < 4  # points are rounded
    visit.expected.append(FAILED)
    visit.page.context.set_offline(True)
    visit.draw([(0.2, 0.8), (0.8, 0.8)])
    toast = visit.one("#toasts [data-owner=real]").filter(has_text="The service cannot be reached.")
    assert "unreachable" not in toast.inner_text()
    visit.page.context.set_offline(False)
    visit.page.wait_for_function("() => !document.querySelector('#toasts > *')")
    visit.settled()


@pytest.mark.parametrize("name", ["no.png", "no.txt"])
def test_what_is_no_picture_is_not_sent(visit: Visit, name: str) -> None:
    visit.one("#file").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": b"no picture"}
    )
    toast = visit.toast(f"{name} is no picture that this browser can read.")
    toast.get_by_role("button", name="Close").click()
    assert toast.count() == 0


def refusing(status: int, headers: dict[str, str], times: int = 1) -> Any:
    """Answers the first requests for 16 pictures with a problem; passes on others, such as those
    for thumbnails.
    """
    left = [times]

    def handle(route: Route) -> None:
        if left[0] == 0 or (route.request.post_data_json or {}).get("n") != 16:
            route.continue_()
            return
        left[0] -= 1
        body = {"detail": "too many rows wait", "code": "queue_full", "request_id": "abc"}
        route.fulfill(
            status=status, headers={"Content-Type": "application/problem+json"} | headers, json=body
        )

    return handle


def test_a_busy_service_is_asked_again_by_itself(visit: Visit) -> None:
    visit.expected.append(FAILED)
    visit.says("generate", "16 pictures")
    visit.page.route("**/generate", refusing(429, {"Retry-After": "1"}, times=2))
    visit.one("#seed").fill("11")
    visit.button("Generate").click()
    visit.toast("Trying again in 1 s.")
    visit.says("generate", "16 pictures of number 11")
    assert visit.one("#toasts > *").count() == 0


def test_while_models_load_the_page_waits_for_them(
    browser: Browser, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        gated(monkeypatch, settings(tiny), ready=False) as (service, gate),
        visiting(browser, service.url) as visit,
    ):
        visit.expected.append(FAILED)
        visit.toast("not_ready")
        assert visit.one("#real").get_attribute("inert") is not None
        gate.opened.set()
        service.until(lambda: service.get("/readyz").status_code == 200)
        visit.ready()
        visit.one("#toasts > *").wait_for(state="detached")


def test_models_are_chosen_and_described(browser: Browser, tiny: Path) -> None:
    with (
        serving(settings(tiny, max_images=10)) as service,
        visiting(browser, service.url, reduced_motion="reduce") as visit,
    ):
        visit.empty()
        assert visit.one("#tiles img").count() == 8  # full rows
        assert visit.page.get_by_role("radio", name="Grey 10").is_checked()
        assert visit.one("#palette").is_hidden()
        visit.draw()
        visit.choose("Colour")
        visit.one("#about-name").filter(has_text="colour, version 1").wait_for()
        visit.one("#palette .swatch").first.wait_for()
        assert "d=" not in visit.page.url  # the drawing belongs to the other model
        visit.settled()
        visit.button("Clear").click()
        visit.page.get_by_role("button", name="Colour #d13c2f").click()
        visit.draw()
        visit.settled()
        red = visit.canvas("RGB").astype("int64")
        assert (red[..., 0] > red[..., 1] + 60).any()
        visit.button("→ grey").click()
        grey = visit.canvas("RGB").astype("int64")
        assert (grey[..., 0] == grey[..., 1]).all()
        visit.button("→ sketch").click()
        assert (visit.canvas("RGB").astype("int64") != grey).any()
        visit.settled()
        visit.one("#about").scroll_into_view_if_needed()
        chosen = visit.one("#served [aria-pressed=true]")
        assert "colour/1" in chosen.inner_text()
        assert "ready" in chosen.inner_text()
        chosen.locator(".load").filter(has_text=re.compile("idle|pictures/s")).wait_for()
        with visit.page.expect_response("**/project") as answered:
            visit.one("#served button").filter(has_text="grey/10").click()
        visit.page.wait_for_function("() => scrollY === 0")  # to what it does
        assert answered.value.json()["model"]["name"] == "grey"


# Everybody can use it


def used(visit: Visit) -> None:
    """Bring everything that can be shown onto the page."""
    visit.ready()
    visit.one("[data-example=drawn]:enabled").wait_for()
    visit.choose("Mask")
    visit.draw([(0.1, 0.1), (0.2, 0.1)])
    visit.choose("Pen")
    visit.draw()
    visit.one("#steps").fill("6")
    visit.settled()
    visit.one("#tiles .tile").first.click()
    visit.one("#lasting").scroll_into_view_if_needed()
    visit.one("#lasting .status").filter(has_text="another picture would be").wait_for()
    visit.button("Walk").click()
    visit.says("walk", "32 frames")


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
    assert {
        "paint",
        "brush",
        "undo",
        "file",
        "compare",
        "live",
        "steps",
        "share",
        "seed",
        "pause",
    } <= set(reached)
    assert {"Generate", "Walk", "Run", "Drawn"} <= set(reached)


@pytest.mark.parametrize(
    ("width", "height", "model"),
    [
        (320, 800, SHIPPED["avatars64"]),
        (390, 844, SHIPPED["mnist"]),
        (390, 844, ""),
        (820, 800, SHIPPED["avatars64"]),
        (1280, 720, SHIPPED["mnist"]),
        (1440, 900, ""),
    ],
)
def test_it_fits(browser: Browser, service: Service, width: int, height: int, model: str) -> None:
    """Canvas, result and verdict are in the first view, nothing makes the page scroll sideways, and
    axe finds nothing.

    Unless the address or the settings name a model, the scans come first.
    """
    titles = {"": "Scans", SHIPPED["mnist"]: "Digits", SHIPPED["avatars64"]: "Avatars"}
    look = {"color_scheme": "dark" if titles[model] == "Digits" else "light"}
    with visiting(
        browser,
        service.url,
        model,
        viewport={"width": width, "height": height},
        reduced_motion="reduce",
        **look,
    ) as visit:
        visit.settled()
        assert visit.one("#models :checked + span").inner_text() == titles[model]
        assert visit.one("#steps-out").inner_text() == "once"
        phone = width < 600 and not model  # shows the result in place of the page
        for selector in ("#made" if phone else "#paint", "#made", "#verdict .status"):
            box = visit.box(selector)
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= height
        if model:  # which makes pictures of noise
            used(visit)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        visit.accessible()


SMALL = """() => [...document.querySelectorAll("main :is(button, .button, summary, label, input), .top a")]
  .filter((element) => element.checkVisibility() && !element.matches(".visually-hidden"))
  .filter((element) => !element.matches("[type=radio], [type=checkbox]"))  // their labels are what is touched
  .filter((element) => !element.control || element.control.matches("[type=radio], [type=checkbox]"))
  .filter((element) => element.getBoundingClientRect().height < 40)
  .map((element) => element.outerHTML.slice(0, 120))"""


def test_fingers_draw_and_do_not_scroll(browser: Browser, service: Service) -> None:
    with visiting(
        browser, service.url, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True
    ) as visit:
        visit.settled()
        empty = visit.canvas()
        visit.one("#paint").tap()
        assert (visit.canvas() != empty).any()
        assert (
            visit.one("#paint").evaluate("canvas => getComputedStyle(canvas).touchAction") == "none"
        )
        assert visit.page.evaluate(SMALL) == []
        tools = " ".join(visit.one(".toolbar").inner_text().split())
        assert tools == "Tool Pen Eraser Mask Brush Undo Redo Clear Open a picture"


# Other pages


def test_the_document_is_shown_and_a_request_can_be_sent(
    browser: Browser, service: Service
) -> None:
    with visiting(
        browser, f"{service.url}/docs"
    ) as visit:  # fails on errors and on requests to other hosts
        generate = visit.one("#operations-Images-generate")
        generate.click()
        assert f"curl {service.url}/generate" in visit.one(".info").inner_text()
        assert "OAS 3.1" in visit.one(".info").inner_text()
        generate.get_by_role("button", name="Try it out").click()
        generate.get_by_role("button", name="Execute").click()
        status = generate.locator(".live-responses-table .response-col_status").nth(1)
        assert status.inner_text().startswith("200")


def test_the_example_of_avatars_shows_every_one(browser: Browser, service: Service) -> None:
    page = browser.new_page()
    page.goto(f"{(ROOT / 'examples' / 'wall_of_avatars.html').as_uri()}?service={service.url}")
    page.wait_for_function(
        "[...document.images].filter(image => image.naturalWidth === 128).length === 10"
    )
    page.close()
