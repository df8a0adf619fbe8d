"""`/docs` in a real browser: Swagger UI reads our OpenAPI 3.1 document under the content security policy."""

from typing import TYPE_CHECKING

from tests.contract.harness import Service
from tests.slow.browser.visit import visiting

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_the_document_is_shown_and_a_request_can_be_sent(browser: "Browser", service: Service) -> None:
    with visiting(browser, f"{service.url}/docs") as visit:  # fails on errors and on requests to other hosts
        generate = visit.one("#operations-Images-generate")
        generate.click()
        assert "OAS 3.1" in visit.one(".info").inner_text()
        generate.get_by_role("button", name="Try it out").click()
        generate.get_by_role("button", name="Execute").click()
        status = generate.locator(".live-responses-table .response-col_status").nth(1)
        assert status.inner_text().startswith("200")
