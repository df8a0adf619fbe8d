"""`python -m tests.slow.browser.screenshot` draws docs/images/page.png anew, with the models that ship."""

import shutil
from typing import Final

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.contract.harness import serving, settings
from tests.helpers.live import ROOT
from tests.slow.browser.conftest import ALONE, MODELS
from tests.slow.browser.visit import visiting

FILE: Final = ROOT / "docs" / "images" / "page.png"
THREE: Final = (
    *((0.3, 0.22), (0.38, 0.17), (0.47, 0.155), (0.57, 0.18), (0.63, 0.26), (0.6, 0.36), (0.52, 0.43), (0.44, 0.46)),
    *((0.55, 0.49), (0.64, 0.57), (0.66, 0.68), (0.6, 0.78), (0.49, 0.83), (0.37, 0.81), (0.28, 0.74)),
)


def main() -> None:
    with serving(settings(MODELS, default_model="mnist")) as service, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ALONE)
        with visiting(browser, service.url, viewport={"width": 1200, "height": 990}) as visit:
            visit.draw(THREE)
            visit.button("Add noise").click()
            visit.one("#steps").fill("3")
            visit.button("Make it real").click()
            visit.says("real", "f moved its pixels by")
            visit.page.mouse.move(1, 1)
            visit.page.evaluate("scrollTo(0, 0)")
            visit.page.evaluate("Promise.all(document.getAnimations().map((animation) => animation.finished))")
            visit.page.screenshot(path=FILE)
        browser.close()
    with Image.open(FILE) as image:
        image.convert("RGB").save(FILE, optimize=True)


if __name__ == "__main__":
    main()
