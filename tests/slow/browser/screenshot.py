"""`python -m tests.slow.browser.screenshot` draws the pictures of the page anew, with the models
that ship.
"""

import shutil
from typing import Any, Final

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.contract.harness import serving, settings
from tests.helpers.live import MODELS, ROOT
from tests.slow.browser.conftest import ALONE
from tests.slow.browser.visit import visiting

FILE: Final = ROOT / "docs" / "images" / "page.png"
PREVIEW: Final = ROOT / "service" / "page" / "preview.png"  # of links to the page


def main() -> None:
    with (
        serving(settings(MODELS, default_model="mnist")) as service,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ALONE)
        options: dict[str, Any] = {
            "viewport": {"width": 1280, "height": 800},
            "reduced_motion": "reduce",
        }
        with visiting(browser, service.url, "scans", **options) as visit:
            visit.settled()
            visit.page.evaluate(
                "Promise.all(document.getAnimations().map((animation) => animation.finished))"
            )
            visit.page.screenshot(path=FILE)
        with visiting(browser, service.url, "avatars64", **options) as visit:
            visit.settled()
            with visit.page.expect_download() as saved:
                visit.button("Save before and after").click()
            saved.value.save_as(PREVIEW)
        browser.close()
    for file in (FILE, PREVIEW):
        with Image.open(file) as image:
            image.convert("RGB").quantize(64).save(file, optimize=True)


if __name__ == "__main__":
    main()
