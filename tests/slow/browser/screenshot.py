"""`python -m tests.slow.browser.screenshot` draws the pictures of the page anew, with the models
that ship.
"""

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright

from model_export.data import damages
from model_export.data.pages import FloatImage, load_font, to_levels, wrap
from tests.contract.harness import serving, settings
from tests.helpers.live import MODELS, ROOT
from tests.slow.browser.conftest import ALONE
from tests.slow.browser.visit import visiting

FILE: Final = ROOT / "docs" / "images" / "page.png"
PREVIEW: Final = ROOT / "service" / "page" / "preview.png"  # of links to the page
EXAMPLE: Final = ROOT / "service" / "page" / "example_page.webp"
# held out by the training
FONT: Final = Path("/usr/share/fonts/truetype/liberation/LiberationSerif-Regular.ttf")
TEXT: Final = """An idempotent generative network is one network f, trained so that f(f(z)) = f(z) for anything that
goes in. Noise becomes a picture in one step, and a damaged picture the one that it may have been. What is real already
stays as it is. This page was drawn by a program, then given uneven light, stains and a fold. The network was trained on
such pages, in other fonts, so that a program that reads print can read them."""
THREE: Final = (
    *(
        (0.3, 0.22),
        (0.38, 0.17),
        (0.47, 0.155),
        (0.57, 0.18),
        (0.63, 0.26),
        (0.6, 0.36),
        (0.52, 0.43),
        (0.44, 0.46),
    ),
    *(
        (0.55, 0.49),
        (0.64, 0.57),
        (0.66, 0.68),
        (0.6, 0.78),
        (0.49, 0.83),
        (0.37, 0.81),
        (0.28, 0.74),
    ),
)


def example_page() -> Image.Image:
    """A page with the damages of the training, in a font that it has not shown."""
    page = Image.new("L", (720, 420), 255)
    pen = ImageDraw.Draw(page)
    heading = load_font(FONT, 34)
    small = load_font(FONT, 23)
    pen.text((48, 36), "Make it real", font=heading, fill=20)
    for number, line in enumerate(wrap(small, " ".join(TEXT.split()), 620)):
        pen.text((48, 96 + 30 * number), line, font=small, fill=25)
    g = np.random.default_rng(24)
    image: FloatImage = np.asarray(page, np.float32) / 255
    for damage, strength in (
        (damages.stain, 0.5),
        (damages.fold, 0.6),
        (damages.light, 0.4),
        (damages.paper, 0.2),
    ):
        image = damage(g, image, strength, 23.0)
    return Image.fromarray(to_levels(image))


def main() -> None:
    example_page().save(EXAMPLE, quality=70)
    with (
        serving(settings(MODELS, default_model="mnist")) as service,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ALONE)
        options: dict[str, Any] = {
            "viewport": {"width": 1280, "height": 720},
            "reduced_motion": "reduce",
        }
        with visiting(browser, service.url, **options) as visit:
            visit.empty()
            visit.draw(THREE)
            visit.button("+ noise").click()
            visit.settled()
            visit.page.mouse.move(1, 1)
            visit.page.evaluate("scrollTo(0, 0)")
            visit.page.evaluate(
                "Promise.all(document.getAnimations().map((animation) => animation.finished))"
            )
            visit.page.screenshot(path=FILE)
            with visit.page.expect_download() as saved:
                visit.button("Save before and after").click()
            saved.value.save_as(PREVIEW)
        browser.close()
    for file in (FILE, PREVIEW):
        with Image.open(file) as image:
            image.convert("RGB").quantize(64).save(file, optimize=True)


if __name__ == "__main__":
    main()
