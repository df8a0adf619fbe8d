"""The search of the documentation site, opened from disk and without a network."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.site import build_site

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site(tmp_path_factory.mktemp("site"))


@pytest.mark.parametrize("page", ["index.html", "models/mnist.html"])
def test_search_finds_pages_from_disk(browser: "Browser", site: Path, page: str) -> None:
    context = browser.new_context(offline=True)
    try:
        tab = context.new_page()
        complaints: list[str] = []
        requests: list[str] = []
        tab.on("console", lambda said: complaints.append(said.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda asked: requests.append(asked.url))
        tab.goto((site / page).as_uri())
        # What is typed before the index has been read is not searched for.
        tab.get_by_text("Type to start searching").first.wait_for(state="attached")
        tab.get_by_role("textbox", name="Search").fill("runbooks")
        found = tab.locator(".md-search-result__item a")
        found.first.wait_for()
        assert any("operations.html" in str(link.get_attribute("href")) for link in found.all())
        assert complaints == []
        assert {url.partition(":")[0] for url in requests} <= {"file", "data", "about"}
    finally:
        context.close()
