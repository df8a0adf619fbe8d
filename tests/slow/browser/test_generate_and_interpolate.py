"""Pictures of a seed, and walks between them."""

import json
import re
import shlex

import numpy as np

from tests.contract.harness import Service, frames, pixels, unb64
from tests.slow.browser.visit import Visit, visiting


def generate(visit: Visit, seed: int) -> None:
    visit.one("#seed").fill(str(seed))
    visit.button("Generate").click()
    visit.says("generate", f"16 pictures of seed {seed}")


def test_sixteen_pictures_of_a_seed(visit: Visit, service: Service) -> None:
    generate(visit, 11)
    answer = service.post("/generate", {"seed": 11, "n": 16}).json()["images"]
    assert visit.one("#tiles img").count() == 16
    for i in (0, 15):
        assert (visit.picture(f"#tiles .tile:nth-child({i + 1}) img") == pixels(unb64(answer[i]["data"]), "L")).all()


def test_a_new_seed_gives_other_pictures(visit: Visit) -> None:
    generate(visit, 11)
    before = visit.picture("#tiles .tile:first-child img")
    visit.button("New seed").click()
    seed = visit.one("#seed").input_value()
    assert seed != "11"
    visit.says("generate", f"16 pictures of seed {seed}")
    assert (visit.picture("#tiles .tile:first-child img") != before).any()


def test_a_picture_goes_to_the_canvas(visit: Visit) -> None:
    generate(visit, 11)
    visit.one("#tiles .tile").nth(4).click()
    assert visit.one("#tiles [aria-pressed=true]").count() == 1
    chosen = visit.picture("#tiles .tile:nth-child(5) img")
    visit.button("To the canvas").click()
    visit.one("#invitation").wait_for(state="hidden")
    canvas = visit.canvas()
    assert (canvas == np.kron(chosen, np.ones((16, 16), np.uint8))).all()


def test_a_walk_is_an_animation_that_can_be_stopped(visit: Visit) -> None:
    generate(visit, 11)
    visit.one("#tiles .tile").nth(2).click()
    first = visit.picture("#tiles .tile:nth-child(3) img")
    visit.button("Walk from it").click()
    assert (visit.picture("#from img") == first).all()
    visit.one("#frames").fill("12")
    visit.one("#loop").uncheck()
    visit.button("Walk").click()
    visit.says("walk", "12 frames")
    with visit.page.expect_download() as saved:
        visit.one("#walk-save").click()
    assert saved.value.suggested_filename == "walk.webp"
    shown = frames(saved.value.path().read_bytes())
    assert len(shown) > 6
    assert (shown[0] == first).all()
    assert (shown[-1] == visit.picture("#to img")).all()
    visit.button("Pause").click()
    assert (visit.picture("#walked") == first).all()  # at rest
    visit.button("Play").click()
    assert (visit.one("#walked").get_attribute("src") or "").startswith("blob:")


def test_a_walk_from_what_is_drawn(visit: Visit, service: Service) -> None:
    visit.draw()
    visit.one("#from").get_by_role("button", name="Use the canvas").click()
    visit.one("#frames").fill("4")
    visit.button("Walk").click()
    visit.says("walk", "4 frames")
    visit.one("#walk summary").click()
    words = shlex.split(re.sub(r"\$\(.*?\)", "PICTURE", visit.one("#walk code").inner_text()))
    assert words[1] == f"{service.url}/latent-interpolate"
    request = json.loads(words[words.index("--json") + 1])
    assert request["points"] == [{"image": "PICTURE"}, {"seed": 2, "index": 0}]


def test_nothing_moves_where_that_is_not_wanted(visit: Visit, service: Service) -> None:
    browser = visit.page.context.browser
    assert browser is not None
    with visiting(browser, service.url, reduced_motion="reduce") as calm:
        calm.button("Walk").click()
        calm.says("walk", "32 frames")
        assert calm.button("Play").is_visible()
        assert calm.picture("#walked").shape == (28, 28)


def test_a_field_that_is_out_of_range_sends_nothing(visit: Visit) -> None:
    visit.one("#seed").fill("-1")
    visit.button("Generate").click()
    assert visit.one("#seed").evaluate("field => field.matches(':invalid')")
    assert visit.one("#tiles img").count() == 0
