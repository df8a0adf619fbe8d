"""Pages of any size, and what the page shows before anybody asks."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.contract.data import pixels
from tests.contract.harness import Service
from tests.helpers.live import ROOT
from tests.slow.browser.visit import Browser, Visit, visiting

EXAMPLE = ROOT / "service" / "page" / "example_page.webp"
QUIET = {"reduced_motion": "reduce"}


@pytest.mark.parametrize("width", [360, 1280])
def test_it_opens_with_a_page_and_what_the_model_makes_of_it(
    browser: Browser, service: Service, width: int
) -> None:
    asked: list[str] = []
    with visiting(
        browser, f"{service.url}/#", viewport={"width": width, "height": 800}, **QUIET
    ) as visit:
        visit.page.on("request", lambda request: asked.append(request.url))
        visit.settled()
        visit.says("real", "Done.")
        slider = visit.page.get_by_role("slider", name="Compare with what went in")
        assert slider.input_value() == "50"
        made = visit.picture("#made")
        tabs = visit.one("#models label").all()
        assert len(tabs) >= 4
        boxes = [tab.bounding_box() for tab in tabs]
        assert all(box and box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
        visit.accessible()
    assert not any(url.endswith("/project") for url in asked)
    answer = service.post(
        "/project",
        data={"model": "scans"},
        files={"image": EXAMPLE.read_bytes()},
        accept="image/png",
    )
    expected = pixels(answer.content, "L").astype(float)
    assert np.abs(expected - made).mean() < 2  # but for what WebP loses


def test_a_phone_shows_a_large_result_that_a_tap_enlarges(
    browser: Browser, service: Service
) -> None:
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True}
    for script in (False, True):  # the picture comes without a script
        with visiting(
            browser, f"{service.url}/#", java_script_enabled=script, is_mobile=True, **phone
        ) as visit:
            box = visit.box("#made")
            assert box["width"] > 300
            assert box["y"] + box["height"] < 740
    with visiting(browser, service.url, "avatars64", **phone, **QUIET) as visit:
        visit.settled()
        drawn, shown = visit.box("#paint"), visit.box("#made")
        assert drawn["width"] == shown["width"] > 200
        assert shown["y"] + shown["height"] < 740
        visit.one("#made-stage").tap(position={"x": 90, "y": 90})
        large = visit.page.get_by_role("dialog", name="The result, enlarged").bounding_box()
        assert large == {"x": 0, "y": 0, "width": 360, "height": 740}
        visit.one("#large-picture").tap()
        visit.one("#large").wait_for(state="hidden")


def test_several_pages_are_made_real_shown_again_and_saved(
    browser: Browser, service: Service, tmp_path: Path
) -> None:
    with Image.open(EXAMPLE) as image:
        page = image.convert("L").crop((0, 0, 760, 420))
    files = [tmp_path / f"{name}.png" for name in ("first", "second")]
    page.save(files[0])
    page.rotate(180).save(files[1])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    with visiting(browser, service.url, "scans", **QUIET) as visit:
        visit.settled()
        visit.one("#file").set_input_files(
            [*files, tmp_path / "broken.png", tmp_path / "notes.txt"]
        )
        visit.one("#page-of").filter(has_text="Page 1 of 3").wait_for()
        visit.one("#save-all:enabled").wait_for()
        visit.toast("broken.png is no picture").get_by_role("button").first.click()
        visit.toast("Not cleaned: broken.png, notes.txt.")
        assert visit.one("#page-list button").count() == 2
        with zipfile.ZipFile(visit.saved("Save all")) as saved:
            assert saved.testzip() is None
            assert saved.namelist() == ["1-first.png", "2-second.png"]
            second = pixels(saved.read("2-second.png"), "L")
        assert second.shape == (420, 760)
        visit.button("Page 1").click()
        visit.one("#page-list [aria-pressed=true]").filter(has_text="Page 1").wait_for()
        alone = visit.saved("Save picture")
        assert alone.name == "first-clean.png"
        with Image.open(alone) as first:
            assert first.size == (760, 420)
            assert (
                np.abs(np.asarray(first.convert("L")).astype(float) - second[::-1, ::-1]).mean() < 8
            )
        visit.choose("Digits")
        visit.page.route("**/project", lambda _: None)
        visit.choose("Scans")
        visit.one("#page-list button").nth(1).wait_for()  # they are still there
        visit.settled()
        assert visit.one("#running").is_hidden()  # and so are the results


def test_a_page_is_cancelled_applied_again_and_compared_by_a_drag(
    browser: Browser, service: Service
) -> None:
    with visiting(browser, service.url, "scans", **QUIET) as visit:
        visit.settled()
        visit.page.route("**/project", lambda _: None)
        visit.one("#strength").fill("70")
        visit.one("#file").set_input_files(EXAMPLE)
        visit.button("Cancel").click()
        visit.says("real", "Cancelled.")
        visit.page.unroute("**/project")
        visit.button("Apply").click()
        visit.one("#verdict .hint").filter(has_text="at strength 70 %").wait_for()
        visit.draw([(0.7, 0.2), (0.25, 0.2)], "#made-stage")
        assert 24 <= float(visit.one("#compare").input_value()) <= 26
        assert not visit.one("#large").is_visible()
        visit.one("#enlarge").press("Enter")
        visit.one("#large").wait_for()


def test_the_box_opens_pages_and_a_pdf_is_sent_to_the_command_line(
    browser: Browser, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "scan").write_bytes(b"%PDF-1.7")  # phones may tell no type
    with visiting(browser, service.url, "scans", **QUIET) as visit:
        visit.settled()  # while the example is shown
        with visit.page.expect_file_chooser() as chosen:
            visit.one("#drawing").click()
        chosen.value.set_files(tmp_path / "scan")
        visit.toast("This page opens pictures, no PDF.")


def test_each_model_keeps_its_drawing(browser: Browser, service: Service) -> None:
    with visiting(browser, service.url, "avatars64", **QUIET) as visit:
        visit.settled()
        assert visit.verdict().startswith("Made real.")
        assert float(visit.one("#brush").input_value()) < 0.1
        visit.one("#brush").fill("0.2")
        visit.button("Drawn").click()
        visit.page.wait_for_function("location.hash.includes('d=')")
        visit.settled()
        assert visit.button("Undo").is_enabled()  # it draws itself
        face = visit.canvas("RGB")
        verdict = visit.verdict()
        visit.choose("Mask")
        visit.choose("Digits")
        visit.one("#about-name").filter(has_text="mnist").wait_for()
        assert visit.page.get_by_role("radio", name="Pen").is_checked()
        visit.settled()
        assert "d=" not in visit.page.url
        visit.page.go_back()  # a tab is a step of the history
        visit.one("#about-name").filter(has_text="avatars64").wait_for()
        visit.settled()
        assert (visit.canvas("RGB") == face).all()
        assert visit.verdict() == verdict
        assert float(visit.one("#brush").input_value()) == pytest.approx(0.2, abs=0.01)
        visit.page.goto(service.url)  # the bare address goes on where this tab was
        visit.settled()
        assert abs(visit.canvas("RGB").astype(int) - face).mean() < 4
        assert visit.verdict() == verdict


@pytest.mark.parametrize("name", ["scans", "scans/1"])
def test_a_link_names_a_model_without_its_version(
    browser: Browser, service: Service, name: str
) -> None:
    with visiting(browser, service.url, name, **QUIET) as visit:
        visit.settled()
        assert visit.page.get_by_role("radio", name="Scans", exact=True).is_checked()


def test_a_verdict_counts_what_is_drawn(visit: Visit) -> None:
    """A line in the empty paper is no digit, although most pixels stay as they are."""
    visit.draw([(0.5, 0.5), (0.5, 0.62)])
    visit.settled()
    assert not visit.verdict().startswith("The network leaves")
