"""`/docs` in a real browser: Swagger UI reads our OpenAPI 3.1 document under the content security policy."""

import re
from typing import TYPE_CHECKING, Final

import pytest

from tests.contract.harness import Service
from tests.slow.browser.visit import visiting

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# The page draws a picture again, from another address, while the first is decoded: `decode()` would fail then.
NATURAL_WIDTH: Final = "(selector) => document.querySelector(selector)?.naturalWidth"


def test_the_document_is_shown_and_a_request_can_be_sent(browser: "Browser", service: Service) -> None:
    with visiting(browser, f"{service.url}/docs") as visit:  # fails on errors and on requests to other hosts
        generate = visit.one("#operations-Pictures-generate")
        generate.click()
        assert "OAS 3.1" in visit.one(".info").inner_text()
        generate.get_by_role("button", name="Try it out").click()
        generate.get_by_role("button", name="Execute").click()
        status = generate.locator(".live-responses-table .response-col_status").nth(1)
        assert status.inner_text().startswith("200")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_colour_scheme_and_shows_pictures(browser: "Browser", service: Service, scheme: str) -> None:
    with visiting(browser, f"{service.url}/docs", color_scheme=scheme) as visit:
        generate = visit.one("#operations-Pictures-generate")
        generate.click()
        background = visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
        assert (brightness > 128) is (scheme == "light")
        assert visit.page.wait_for_function(NATURAL_WIDTH, arg=".info img").json_value() == 60
        generate.get_by_role("button", name="Try it out").click()
        generate.get_by_label("Media Type").first.select_option("image/png")
        generate.get_by_role("button", name="Execute").click()
        visit.page.wait_for_function(NATURAL_WIDTH, arg=".response-col_description img")
