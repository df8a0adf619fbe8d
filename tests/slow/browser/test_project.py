"""Draw, and make it real."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.contract.harness import Service, b64, pixels
from tests.helpers.live import ROOT
from tests.slow.browser.visit import Visit

DRAWN = ROOT / "docs" / "images" / "drawn.png"


@pytest.mark.smoke
def test_a_drawing_is_made_real(visit: Visit, tmp_path: Path) -> None:
    visit.draw()
    visit.button("Make it real").click()
    visit.says("real", "f moved its pixels by")
    made, seen = visit.picture("#made"), visit.picture("#trajectory li:first-child img")
    assert made.shape == seen.shape == (28, 28)
    assert seen.max() == 255  # there is ink, light on dark
    assert seen.min() == 0
    assert (made != seen).any()
    assert visit.one("#made").evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    assert (visit.one("#made").bounding_box() or {"width": 0})["width"] > 300
    with visit.page.expect_download() as saved:
        visit.one("#save-made").click()
    saved.value.save_as(tmp_path / saved.value.suggested_filename)
    assert (pixels((tmp_path / "real.png").read_bytes(), "L") == made).all()


def test_what_f_saw_is_what_was_drawn(visit: Visit) -> None:
    visit.draw()
    drawn = visit.canvas()
    visit.button("Make it real").click()
    seen = visit.picture("#trajectory li:first-child img")
    side = drawn.shape[0] // 28
    means = drawn.reshape(28, side, 28, side).mean(axis=(1, 3))
    assert np.abs(means - seen).max() <= 0.51


def test_undo_redo_and_clear(visit: Visit) -> None:
    empty = visit.canvas()
    assert visit.button("Undo").is_disabled()
    visit.draw()
    drawn = visit.canvas()
    assert (drawn != empty).any()
    visit.button("Undo").click()
    assert (visit.canvas() == empty).all()
    visit.button("Redo").click()
    assert (visit.canvas() == drawn).all()
    visit.button("Clear").click()
    assert (visit.canvas() == empty).all()
    visit.page.keyboard.press("Control+z")
    assert (visit.canvas() == drawn).all()
    visit.one("label").filter(has_text=re.compile("^Eraser$")).click()
    visit.draw()
    assert (visit.canvas() == empty).mean() > 0.99  # but for a rim of the brush


def test_the_keyboard_draws_too(visit: Visit) -> None:
    empty = visit.canvas()
    visit.one("#paint").focus()
    for key in (" ", "ArrowDown", "ArrowDown", "ArrowDown", " ", "ArrowLeft"):
        visit.page.keyboard.press(key)
    drawn = visit.canvas() != empty
    assert drawn.any(axis=1).sum() > 2 * drawn.any(axis=0).sum() / 1.6  # a stroke downwards
    assert visit.button("Undo").is_enabled()


def test_steps_are_shown_one_by_one_and_can_go_on(visit: Visit) -> None:
    visit.draw()
    visit.one("#steps").fill("2")  # the third stop: 3 times
    visit.button("Make it real").click()
    visit.one("#trajectory li").nth(3).wait_for()
    assert visit.one("#trajectory b").all_inner_texts() == ["seen", "f", "f²", "f³"]
    third = visit.picture("#made")
    visit.button("Again: f of it").click()
    visit.one("#trajectory li").nth(4).wait_for()
    assert visit.one("#trajectory b").last.inner_text() == "f⁴"
    visit.says("real", "f, applied 4 times")
    visit.one("#trajectory button").nth(3).click()
    assert (visit.picture("#made") == third).all()
    assert visit.one("#trajectory [aria-pressed=true] b").inner_text() == "f³"


def test_strength_none_leaves_it_as_it_is(visit: Visit) -> None:
    visit.draw()
    visit.one("#strength").fill("0")
    visit.button("Make it real").click()
    assert (visit.picture("#made") == visit.picture("#trajectory li:first-child img")).all()


def test_outside_the_mask_nothing_changes(visit: Visit) -> None:
    visit.draw()
    visit.one("label").filter(has_text=re.compile("^Mask$")).click()
    visit.draw([(0.3, 0.6), (0.7, 0.6)])
    visit.button("Make it real").click()
    visit.says("real", "Outside the mask everything is as it was.")
    made, seen = visit.picture("#made"), visit.picture("#trajectory li:first-child img")
    assert (seen == 128).sum() > 20  # what was under the mask is forgotten
    assert (made == seen)[:8].all()
    assert (made != seen).any()
    assert (made != seen).sum() <= (seen == 128).sum()


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_a_picture_is_opened_in_the_models_polarity_and_shape(visit: Visit, tmp_path: Path, form: str) -> None:
    file = tmp_path / f"digit.{form}"
    with Image.open(DRAWN) as image:
        image.convert("L").resize((90, 60)).point(lambda level: 255 - level).save(file)  # ink on white
    visit.one("#file").set_input_files(file)
    visit.one("#invitation").wait_for(state="hidden")
    placed = visit.canvas()
    assert placed[0].mean() < 60  # dark, as the model has it
    assert placed.max() > 150
    visit.button("Make it real").click()
    visit.says("real", "f moved its pixels by")


GIVE = """([kind, encoded]) => {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "drawn.png", { type: "image/png" }));
  const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_picture_is_taken_from_elsewhere(visit: Visit, service: Service, kind: str) -> None:
    visit.page.evaluate(GIVE, [kind, b64(DRAWN.read_bytes())])
    visit.one("#invitation").wait_for(state="hidden")
    prepared = service.client.post(
        "/project", data={"strength": "0"}, files={"image": DRAWN.read_bytes()}, headers={"Accept": "image/png"}
    )
    assert (visit.canvas() == np.kron(pixels(prepared.content), np.ones((16, 16), np.uint8))).all()
    visit.page.wait_for_function(
        """() => {
          const seen = document.querySelector("#seen");
          return seen.getContext("2d").getImageData(0, 0, 28, 28).data.some((level, i) => i % 4 < 3 && level > 0);
        }"""
    )


def test_noise_is_taken_away(visit: Visit) -> None:
    visit.one("#file").set_input_files(DRAWN)
    visit.one("#invitation").wait_for(state="hidden")
    visit.button("Add noise").click()
    visit.button("Make it real").click()
    made, seen = visit.picture("#made").astype(float), visit.picture("#trajectory li:first-child img").astype(float)
    assert np.abs(np.diff(made)).mean() < np.abs(np.diff(seen)).mean() / 2


def test_while_it_is_drawn(visit: Visit) -> None:
    visit.one("#live").check()
    visit.draw()
    visit.says("real", "f moved its pixels by")
    before = _address(visit)
    visit.draw([(0.3, 0.5), (0.7, 0.55)])
    visit.page.wait_for_function("before => document.querySelector('#made').src !== before", arg=before)


def _address(visit: Visit) -> str:
    return visit.one("#made").get_attribute("src") or ""


def test_the_command_line_gives_the_same_picture(visit: Visit, service: Service, tmp_path: Path) -> None:
    visit.draw()
    visit.one("#strength").fill("60")
    visit.button("Make it real").click()
    made = visit.picture("#made")
    with visit.page.expect_download() as waiting:
        visit.button("Save the drawing").click()
    waiting.value.save_as(tmp_path / "drawing.png")
    assert waiting.value.suggested_filename == "drawing.png"
    visit.one("#real summary").click()
    words = shlex.split(visit.one("#real code").inner_text())
    assert words[0] == "curl"
    assert words[1] == f"{service.url}/project"
    fields = dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "-F")
    image = (tmp_path / fields.pop("image").removeprefix("@")).read_bytes()
    answer = service.client.post(
        "/project", data=fields, files={"image": image}, headers=dict([words[words.index("-H") + 1].split(": ")])
    )
    assert (pixels(answer.content, "L") == made).all()


def test_a_result_can_be_drawn_on(visit: Visit) -> None:
    visit.draw()
    visit.button("Make it real").click()
    made = visit.picture("#made")
    before = visit.page.evaluate("document.querySelector('#paint').toDataURL()")
    visit.button("Put it on the canvas").click()
    visit.page.wait_for_function("before => document.querySelector('#paint').toDataURL() !== before", arg=before)
    visit.button("Make it real").click()
    visit.page.wait_for_function(
        "made => document.querySelector('#trajectory li:first-child img').src === made", arg=_address_of_frame(visit, 1)
    )
    assert (visit.picture("#trajectory li:first-child img") == made).all()


def _address_of_frame(visit: Visit, index: int) -> str:
    return visit.one("#trajectory img").nth(index).get_attribute("src") or ""
