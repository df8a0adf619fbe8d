"""Pictures of a seed, and walks between them."""

import itertools

import numpy as np
import pytest

from tests.contract.data import frames, pixels, unb64
from tests.contract.harness import Service
from tests.slow.browser.visit import Browser, Visit, visiting


def generate(visit: Visit, seed: int) -> None:
    visit.one("#seed").fill(str(seed))
    visit.button("Generate").click()
    visit.says("generate", f"16 pictures of number {seed}")


def test_sixteen_pictures_of_a_seed(visit: Visit, service: Service) -> None:
    generate(visit, 11)
    answer = service.images("/generate", {"seed": 11, "n": 16})
    assert visit.one("#tiles img").count() == 16
    for i in (0, 15):
        assert (
            visit.picture(f"#tiles .tile:nth-child({i + 1}) img")
            == pixels(unb64(answer[i]["data"]), "L")
        ).all()
    visit.button("New pictures").click()
    seed = visit.one("#seed").input_value()
    assert seed != "11"
    visit.says("generate", f"16 pictures of number {seed}")


def test_a_picture_goes_to_the_canvas(visit: Visit) -> None:
    generate(visit, 11)
    visit.one("#tiles .tile").nth(4).click()
    assert visit.one("#tiles [aria-pressed=true]").count() == 1
    chosen = visit.picture("#tiles .tile:nth-child(5) img")
    assert visit.saved("Save the picture").name == "seed-11-4.png"
    visit.button("To the canvas").click()
    visit.one("#invitation").wait_for(state="hidden")
    canvas = visit.canvas()
    assert (canvas == np.kron(chosen, np.ones((16, 16), np.uint8))).all()


def test_a_walk_is_an_animation_that_can_be_stopped(browser: Browser, service: Service) -> None:
    with visiting(browser, service.url) as moving:  # with motion
        moving.ready()
        moving.one("#walk").scroll_into_view_if_needed()
        moving.says("walk", "32 frames")  # it plays by itself
        generate(moving, 11)
        moving.one("#tiles .tile").nth(2).click()
        first = moving.picture("#tiles .tile:nth-child(3) img")
        moving.button("Walk from it").click()
        assert (moving.picture("#from img") == first).all()
        moving.one("#frames").fill("12")
        moving.button("Walk").click()
        moving.says("walk", "12 frames")
        moving.button("Pause").click()
        assert (moving.picture("#walked") == first).all()  # at rest
        moving.button("Play").click()
        assert (moving.one("#walked").get_attribute("src") or "").startswith("blob:")


# 96 frames of 448 pixels are more than is allowed
@pytest.mark.parametrize(("count", "scale"), [(8, 16), (96, 14)])
def test_a_walk_is_saved_at_a_size_worth_showing(
    visit: Visit, service: Service, count: int, scale: int
) -> None:
    visit.one("#walk").scroll_into_view_if_needed()
    visit.one("#frames").fill(str(count))
    visit.one("#loop").uncheck()
    visit.button("Walk").click()
    visit.says("walk", f"{count} frames")
    saved = visit.saved("Save the walk")
    assert saved.name == "walk.webp"
    shown = frames(saved.read_bytes())
    points = [{"seed": 7, "index": 2}, {"seed": 7, "index": 9}]
    walk = service.images("/latent-interpolate", {"points": points, "frames": count})
    # WebP shows a frame longer in place of the same frame twice, which an exact f makes.
    distinct = [
        pixels(unb64(data), "L") for data, _ in itertools.groupby(image["data"] for image in walk)
    ]
    assert len(distinct) > count / 2
    for large, small in zip(shown, distinct, strict=True):
        assert (large == np.kron(small, np.ones((scale, scale), np.uint8))).all()


def test_a_walk_from_what_is_drawn(visit: Visit) -> None:
    visit.draw()
    visit.one("#walk").scroll_into_view_if_needed()
    visit.says("walk", "32 frames")
    assert visit.button("Play").is_visible()  # with reduced motion nothing plays by itself
    assert visit.picture("#walked").shape == (28, 28)
    before = visit.picture("#walked")
    visit.one("#from").get_by_role("button", name="Use the canvas").click()  # is walked at once
    visit.one("#walk:not([data-stale], [aria-busy])").wait_for()
    assert (visit.picture("#walked") != before).any()
    visit.one("#frames").fill("4")
    assert visit.one("#walk[data-stale]").count() == 1
    visit.button("Walk").click()
    visit.says("walk", "4 frames")
    assert visit.one("#walk[data-stale]").count() == 0


def test_a_field_that_is_out_of_range_sends_nothing(visit: Visit) -> None:
    visit.says("generate", "16 pictures of number 7")  # those the page begins with
    asked: list[str] = []
    # Playwright marks its handlers: no builtin
    visit.page.on("request", lambda request: asked.append(request.post_data or ""))
    visit.one("#seed").fill("-1")
    visit.button("Generate").click()
    assert visit.one("#seed").evaluate("field => field.matches(':invalid')")
    generate(visit, 8)
    assert not any('"seed":-1' in body for body in asked)
