"""`examples/wall_of_avatars.html` in a real browser, as a file on disk."""

from typing import TYPE_CHECKING

from tests.contract.harness import Service
from tests.helpers.live import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SHOWN = "[...document.images].filter(image => image.complete && image.naturalWidth === 128).map(image => image.alt)"


def test_the_wall_shows_every_avatar(browser: "Browser", service: Service) -> None:
    page = browser.new_page()
    page.goto(f"{(ROOT / 'examples' / 'wall_of_avatars.html').as_uri()}?service={service.url}")
    page.wait_for_function(f"document.images.length === 10 && {SHOWN}.length === 10")
    assert page.evaluate(SHOWN)[-2:] == ["湯川", "🦊"]
    page.close()
