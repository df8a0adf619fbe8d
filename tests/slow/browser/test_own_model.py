"""Pictures in colour of one's own: trained, exported, loaded into a service that runs, and drawn in its page."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw

from tests.contract.harness import Service, serving, settings, write_models
from tests.slow.browser.visit import visiting

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SIDE = 16


def stamps(folder: Path, count: int) -> Path:
    """Discs and squares in colour on light ground."""
    folder.mkdir()
    choose = random.Random(0)
    for i in range(count):
        picture = Image.new("RGB", (SIDE, SIDE), (250, 247, 240))
        draw = ImageDraw.Draw(picture)
        x, y = choose.randrange(2, 6), choose.randrange(2, 6)
        shape = draw.ellipse if i % 2 else draw.rectangle
        shape((x, y, x + 8, y + 8), fill=choose.choice(["#d62828", "#286ec8", "#289650"]), outline="#1e1e1e")
        picture.save(folder / f"{i:03}.png")
    return folder


def train_and_export(work: Path, models: Path) -> None:
    main = pytest.importorskip("model_export.cli", reason="torch is not installed").main
    pictures, run = stamps(work / "stamps", 40), work / "run"
    command = ["train", "--data", str(pictures), "--out", str(run), "--name", "stamps", "--steps", "6", "--batch", "8"]
    assert main([*command, "--threads", "1"]) == 0
    assert main(["export", "--run", str(run), "--models", str(models), "--threads", "1"]) == 0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(settings(write_models(tmp_path / "models"), default_model="grey")) as running:
        yield running


def test_own_pictures_in_colour_come_into_the_page(browser: "Browser", service: Service, tmp_path: Path) -> None:
    with visiting(browser, service.url, reduced_motion="reduce") as visit:
        visit.empty()
        train_and_export(tmp_path, tmp_path / "models")
        assert service.post("/v2/repository/models/stamps/load").status_code == 200
        visit.page.reload()
        visit.choose("Stamps")
        visit.page.get_by_role("group", name="Colour").get_by_role("button").first.click()
        visit.one("#clear:enabled").click()
        visit.draw([(0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7), (0.3, 0.3)])
        with visit.page.expect_response("**/project") as answered:
            visit.one("#steps").fill("2")
        assert answered.value.json()["model"]["name"] == "stamps"
        visit.settled()
        for example in ("Grey", "Sketch"):  # what `small` learns for pictures in colour
            visit.button(example).click()
            visit.settled()
