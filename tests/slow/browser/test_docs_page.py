"""Other pages in a real browser: `/docs`, where Swagger UI reads our OpenAPI 3.1 document, and the
avatars' example.
"""

from tests.contract.harness import Service
from tests.helpers.live import ROOT
from tests.slow.browser.visit import Browser, visiting


def test_the_document_is_shown_and_a_request_can_be_sent(
    browser: Browser, service: Service
) -> None:
    with visiting(
        browser, f"{service.url}/docs"
    ) as visit:  # fails on errors and on requests to other hosts
        generate = visit.one("#operations-Images-generate")
        generate.click()
        assert f"curl {service.url}/generate" in visit.one(".info").inner_text()
        assert "OAS 3.1" in visit.one(".info").inner_text()
        generate.get_by_role("button", name="Try it out").click()
        generate.get_by_role("button", name="Execute").click()
        status = generate.locator(".live-responses-table .response-col_status").nth(1)
        assert status.inner_text().startswith("200")


def test_the_example_of_avatars_shows_every_one(browser: Browser, service: Service) -> None:
    page = browser.new_page()
    page.goto(f"{(ROOT / 'examples' / 'wall_of_avatars.html').as_uri()}?service={service.url}")
    page.wait_for_function(
        "[...document.images].filter(image => image.naturalWidth === 128).length === 10"
    )
    page.close()
