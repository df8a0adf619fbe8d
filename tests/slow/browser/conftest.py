"""The page in a real browser, against the real service with the models that ship.

Needs Playwright for Python, and Chromium as the system has it; no browser is downloaded.
"""

import shutil
from collections.abc import Iterator

import pytest

from tests.contract.harness import Service, serving, settings
from tests.helpers.live import MODELS
from tests.slow.browser.visit import Browser, Visit, visiting

# Besides what Playwright says. The tests may be run by root; all they open is the page.
ALONE = ("--no-sandbox", "--disable-gpu", "--disable-quic")


# Playwright runs an event loop in the main thread until this ends: a test of another module could not
# call `asyncio.run`.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip(
        "playwright.sync_api",
        reason="playwright is not installed, so the page was not tried in a browser",
    )
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed, so the page was not tried in a browser")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=chromium, args=ALONE)
        yield running
        running.close()


@pytest.fixture(scope="package")
def service() -> Iterator[Service]:
    with serving(settings(MODELS, default_model="mnist")) as running:
        yield running


@pytest.fixture
def visit(browser: Browser, service: Service) -> Iterator[Visit]:
    """The page, opened; nothing may go wrong in the browser that the test did not expect."""
    with visiting(
        browser, service.url, reduced_motion="reduce"
    ) as opened:  # the example shows at once
        opened.empty()
        yield opened
