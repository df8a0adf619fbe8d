"""The page with a model that takes images of any size."""

from pathlib import Path

import numpy as np

from service.artifact.card import Tiles
from tests.contract.harness import serving, settings
from tests.helpers.onnx_models import write_model
from tests.helpers.pictures import noise, save
from tests.slow.browser.visit import Browser, visiting


def test_an_opened_image_keeps_its_size(browser: Browser, tmp_path: Path) -> None:
    write_model(
        tmp_path, "pages", shape=(1, 32, 32), polarity="none", imported=True, tiles=Tiles(overlap=1)
    )
    image = noise(150, 90, seed=1)
    with (
        serving(settings(tmp_path, default_model="pages")) as service,
        visiting(browser, service.url) as visit,
    ):
        visit.ready()
        visit.one("#file").set_input_files(
            {"name": "page.png", "mimeType": "image/png", "buffer": save(image)}
        )
        visit.says("real", "moved")
        made = service.client.post(
            "/project",
            params={"invert": "false"},
            content=save(image),
            headers={"Content-Type": "image/png", "Accept": "application/x-npy"},
        )
        assert visit.picture("#made").shape == image.shape
        np.testing.assert_array_equal(visit.picture("#seen"), image)
        assert made.status_code == 200
        assert not visit.one("#lasting").is_visible()


def test_a_page_is_an_example(browser: Browser, tmp_path: Path) -> None:
    write_model(
        tmp_path, "pages", shape=(1, 32, 32), polarity="none", imported=True, tiles=Tiles(overlap=1)
    )
    write_model(tmp_path, "toy")
    with (
        serving(settings(tmp_path, default_model="pages")) as service,
        visiting(browser, service.url) as visit,
    ):
        visit.ready()
        visit.button("Stained page").click()
        visit.says("real", "moved")
        assert visit.picture("#made").shape == (420, 720)
        assert not visit.one("[data-example=noisy]").is_visible()
        visit.choose("Toy")
        visit.says("generate", "16 pictures of seed")
        assert not visit.one("[data-example=page]").is_visible()
