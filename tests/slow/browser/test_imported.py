"""The page with imported networks: one makes nothing of noise, one takes images of any size."""

from pathlib import Path

import numpy as np

from service.artifact.card import Origin, Tiles
from tests.contract.harness import serving, settings
from tests.helpers.onnx_models import write_model
from tests.helpers.pictures import noise, save
from tests.slow.browser.visit import Browser, Route, visiting


def test_what_needs_noise_is_hidden_and_the_rest_works(browser: Browser, tmp_path: Path) -> None:
    origin = Origin(file="denoiser.onnx", sha256="0" * 64, folded=("y = x − network(x)",))
    write_model(tmp_path, "denoiser", imported=True, origin=origin)
    write_model(tmp_path, "toy")
    chosen = settings(tmp_path, default_model="denoiser")
    with (
        serving(chosen) as service,
        visiting(browser, service.url, reduced_motion="reduce") as visit,
    ):
        visit.draw()
        visit.settled()
        for section in ("#generate", "#walk", "[data-example=drawn]"):
            assert not visit.one(section).is_visible()
        assert visit.one("#noise").is_visible()
        visit.one("#about").scroll_into_view_if_needed()
        visit.one("#about-facts").filter(has_text="denoiser.onnx, y = x − network(x)").wait_for()
        visit.one("#lasting").scroll_into_view_if_needed()
        visit.one("#strip img").first.wait_for()
        visit.choose("Toy")
        visit.says("generate", "16 pictures of number")
        assert visit.one("[data-example=drawn]").is_visible()


def write_pages(models: Path) -> None:
    tiles = Tiles(overlap=1)
    write_model(models, "pages", shape=(1, 32, 32), polarity="none", imported=True, tiles=tiles)


def test_an_opened_image_keeps_its_size(browser: Browser, tmp_path: Path) -> None:
    write_pages(tmp_path)
    image = noise(150, 90, seed=1)
    late: list[Route] = []
    with (
        serving(settings(tmp_path, default_model="pages")) as service,
        visiting(browser, service.url) as visit,
    ):
        visit.page.route("**/example_page.webp", lambda route: late.append(route))
        visit.page.reload(wait_until="commit")
        visit.ready()
        visit.opens(save(image))
        for route in late:
            route.continue_()  # an example that comes late does not replace it
        visit.page.wait_for_load_state("networkidle")
        assert visit.picture("#made").shape == image.shape
        visit.one("#strength").fill("0")  # which makes it again
        visit.settled()
        for selector in ("#seen", "#made"):
            np.testing.assert_array_equal(visit.picture(selector), image)
        assert not visit.one("#lasting").is_visible()


def test_a_page_is_an_example(browser: Browser, tmp_path: Path) -> None:
    write_pages(tmp_path)
    write_model(tmp_path, "toy")
    with (
        serving(settings(tmp_path, default_model="pages")) as service,
        visiting(browser, service.url) as visit,
    ):
        visit.ready()
        visit.button("Stained page").click()
        visit.says("real", "Done.")
        assert visit.picture("#made").shape == (880, 760)
        assert not visit.one("[data-example=noisy]").is_visible()
        visit.choose("Toy")
        visit.says("generate", "16 pictures of number")
        assert not visit.one("[data-example=page]").is_visible()
