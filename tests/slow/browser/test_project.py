"""Draw, and make it real."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.contract.data import b64, pixels
from tests.contract.harness import Service
from tests.helpers.live import ROOT, SHIPPED
from tests.slow.browser.visit import Browser, Visit, visiting

DRAWN = ROOT / "docs" / "images" / "drawn.png"


def test_requests_go_out_during_a_stroke_one_at_a_time(visit: Visit) -> None:
    flying: set[object] = set()
    most: list[int] = []

    def begin(request: object) -> None:
        if getattr(request, "url", "").endswith("/project"):
            flying.add(request)
            most.append(len(flying))

    visit.page.on("request", begin)
    visit.page.on("requestfinished", lambda request: flying.discard(request))
    box = visit.box("#paint")
    visit.page.mouse.move(box["x"] + 100, box["y"] + 100)
    visit.page.mouse.down()
    with visit.page.expect_response("**/project"):
        visit.page.mouse.move(box["x"] + 100, box["y"] + 300, steps=20)
    visit.page.mouse.move(box["x"] + 200, box["y"] + 300, steps=20)
    assert most  # and the pen is still down
    visit.page.mouse.up()
    visit.settled()
    assert max(most) == 1


def test_without_live_the_result_waits_and_says_that_it_is_old(visit: Visit) -> None:
    visit.draw()
    visit.settled()
    visit.page.get_by_role("switch", name="Live, while you draw").uncheck()
    before = visit.picture("#made")
    visit.draw([(0.3, 0.5), (0.7, 0.55)])
    assert visit.one("#real").get_attribute("data-stale") is not None
    assert (visit.picture("#made") == before).all()
    visit.button("Make it real").click()
    visit.settled()
    assert (visit.picture("#made") != before).any()


def test_mouse_and_keyboard_draw_undo_redo_and_clear(visit: Visit) -> None:
    empty = visit.canvas()
    visit.draw()
    drawn = visit.canvas()
    assert (drawn != empty).any()
    visit.button("Undo").click()
    assert (visit.canvas() == empty).all()
    visit.button("Redo").click()
    assert (visit.canvas() == drawn).all()
    visit.button("Clear").click()
    assert (visit.canvas() == empty).all()
    visit.says("real", "Draw something first.")
    visit.one("#made").wait_for(state="hidden")
    visit.page.keyboard.press("Control+z")
    assert (visit.canvas() == drawn).all()
    visit.choose("Eraser")
    visit.draw()
    assert (visit.canvas() != drawn).any()
    visit.button("Clear").click()
    visit.choose("Pen")
    visit.one("#paint").focus()
    visit.page.keyboard.press("Space")
    for _ in range(4):
        visit.page.keyboard.press("ArrowDown")
    assert (visit.canvas() != empty).any()
    visit.page.keyboard.press("Space")
    assert visit.one("#pointer").get_attribute("data-down") == "false"


def test_strength_none_leaves_it_as_it_is_and_the_slider_compares(visit: Visit) -> None:
    visit.draw()
    drawn = visit.canvas()
    visit.one("#strength").fill("0")
    visit.settled()
    assert (visit.picture("#made") == visit.picture("#seen")).all()
    side = drawn.shape[0] // 28
    means = drawn.reshape(28, side, 28, side).mean(axis=(1, 3))
    assert np.abs(means - visit.picture("#seen")).max() <= 0.51  # f saw what was drawn
    slider = visit.page.get_by_role("slider", name="Compare with what went in")
    slider.focus()
    for _ in range(3):
        visit.page.keyboard.press("PageUp")
    share = int(slider.input_value())
    assert share > 0
    shown = visit.one("#seen").evaluate("image => getComputedStyle(image).clipPath")
    assert f"{100 - share}%" in shown


def test_outside_the_mask_nothing_changes_and_a_hole_takes_more_steps(visit: Visit) -> None:
    usual = visit.one("#steps").input_value()
    visit.draw()
    visit.choose("Mask")
    visit.draw([(0.3, 0.6), (0.7, 0.6)])
    visit.settled()
    made = visit.picture("#made")
    seen = visit.picture("#seen")
    assert (seen == 128).sum() > 20  # what was under the mask is forgotten
    assert (made == seen)[:8].all()
    assert 0 < (made != seen).sum() <= (seen == 128).sum()
    assert int(visit.one("#steps").input_value()) > int(usual)
    visit.button("Clear").click()
    assert visit.one("#steps").input_value() == usual
    visit.one("#steps").fill("3")  # unless the user chooses
    visit.draw()
    visit.settled()
    assert visit.one("#steps").input_value() == "3"


@pytest.mark.parametrize("form", ["png", "webp"])
def test_a_picture_is_opened_in_the_models_polarity_and_without_the_old_mask(
    visit: Visit, tmp_path: Path, form: str
) -> None:
    visit.choose("Mask")
    visit.draw()
    file = tmp_path / f"digit.{form}"
    with Image.open(DRAWN) as image:
        # ink on white
        image.convert("L").resize((90, 90)).point(lambda level: 255 - level).save(file)
    with visit.page.expect_response("**/project"):
        visit.one("#file").set_input_files(file)
    visit.page.wait_for_function(
        "document.querySelector('#masking input').checked && "
        "!document.querySelector('#made').hidden"
    )
    visit.page.wait_for_function(
        "() => !document.querySelector('#mask').getContext('2d').getImageData(0, 0, 448, "
        "448).data.some(Boolean)"
    )
    visit.settled()
    placed = visit.canvas()
    assert placed[0].mean() < 60  # dark, as the model has it
    assert placed.max() > 150


def test_a_part_of_a_wide_picture_is_chosen(visit: Visit, tmp_path: Path) -> None:
    wide = np.zeros((100, 300), np.uint8)
    wide[:, 200:] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    visit.one("#file").set_input_files(tmp_path / "wide.png")
    dialog = visit.page.get_by_role("dialog", name="Which part?")
    dialog.wait_for()
    dialog.get_by_role("button", name="Cancel").click()
    assert visit.button("Clear").is_disabled()  # nothing was placed
    visit.one("#file").set_input_files(tmp_path / "wide.png")
    visit.page.get_by_role("application", name="Part of the picture").focus()
    for _ in range(20):
        visit.page.keyboard.press("ArrowLeft")  # to the left end, which is dark
    dialog.get_by_role("button", name="Use it").click()
    visit.one("#undo:enabled").wait_for()
    assert visit.canvas().max() < 60


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
    prepared = service.post(
        "/project",
        data={"strength": "0"},
        files={"image": DRAWN.read_bytes()},
        accept="image/png",
    )
    assert (visit.canvas() == np.kron(pixels(prepared.content), np.ones((16, 16), np.uint8))).all()


@pytest.mark.parametrize("name", ["Drawn", "Noisy", "Half hidden"])
def test_examples(visit: Visit, name: str) -> None:
    empty = visit.canvas()
    visit.button(name).click()
    visit.page.wait_for_function("document.querySelector('#clear:enabled')")
    visit.settled()
    assert (visit.canvas() != empty).any()
    visit.verdict()
    assert visit.one("#masking").is_visible() == (name == "Half hidden")
    visit.button("+ noise").click()
    visit.one("#masking").wait_for(state="hidden")


def test_an_example_makes_one_request(browser: Browser, service: Service) -> None:
    """Also one that draws itself."""
    asked: list[str] = []
    with visiting(browser, service.url) as moving:
        moving.page.on(
            "request", lambda request: asked.append(request.headers.get("accept", "") + request.url)
        )
        for count, name in enumerate(("", "Drawn", "Half hidden"), 1):
            if name:
                moving.button(name).click()
                moving.one("#undo:enabled").wait_for()
            moving.settled()
            assert asked.count(f"application/json{service.url}/project") == count


def test_the_command_line_gives_the_same_picture(visit: Visit, service: Service) -> None:
    visit.draw()
    visit.one("#strength").fill("60")
    visit.one("#steps").fill("3")
    visit.settled()
    made = visit.picture("#made")
    visit.one("#real summary").click()
    drawing = visit.saved("Save drawing.png")
    words = shlex.split(visit.one("#real code").inner_text())
    assert words[0] == "curl"
    assert words[1] == f"{service.url}/project"
    fields = dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "-F")
    assert fields.pop("image") == f"@{drawing.name}"
    image = drawing.read_bytes()
    answer = service.post(
        "/project",
        data=fields,
        files={"image": image},
        headers=dict([words[words.index("-H") + 1].split(": ")]),
    )
    assert (pixels(answer.content, "L") == made).all()


def test_a_result_is_saved_and_drawn_on(visit: Visit) -> None:
    visit.draw([(0.5, 0.5), (0.51, 0.5)])
    visit.settled()
    # a dot never looked real
    assert visit.verdict().startswith("There is too little to go on.")
    visit.draw()
    visit.settled()
    with Image.open(visit.saved("Save before and after")) as card:
        assert card.size == (1200, 630)
    made = visit.picture("#made")
    source = visit.one("#made").get_attribute("src")
    visit.button("Draw on the result").click()  # the next result replaces `source`
    visit.page.wait_for_function(
        "source => document.querySelector('#seen').src === source", arg=source
    )
    assert (visit.picture("#seen") == made).all()


def test_the_address_holds_model_seed_and_drawing(
    browser: Browser, visit: Visit, service: Service
) -> None:
    visit.draw()
    visit.one("#brush").fill("0.2")
    visit.draw([(0.2, 0.8), (0.8, 0.8)])
    visit.choose("Mask")
    visit.draw([(0.3, 0.3), (0.6, 0.3)])
    visit.settled()
    visit.page.wait_for_function("location.hash.includes('d=')")
    drawn = visit.canvas()
    seen = visit.picture("#seen")
    address = visit.page.url
    assert f"#m={SHIPPED['mnist']}&s=7&d=" in address
    assert len(address) < 1500
    with visiting(browser, address.replace("s=7", "s=11"), reduced_motion="reduce") as other:
        other.settled()
        assert other.one("#seed").input_value() == "11"
        assert np.abs(other.canvas().astype(float) - drawn).mean() < 4  # points are rounded
        assert np.abs(other.picture("#seen").astype(float) - seen).mean() < 4
    for broken in ("#m=nope/1&d=AQ", "#d=%%%", "#s=-1&d=__________"):
        with visiting(browser, f"{service.url}/{broken}", reduced_motion="reduce") as other:
            other.settled()  # an example is shown
            assert other.one("#seed").input_value() == "7"
