"""The search of the documentation site, opened from disk and without a network."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.site import build_site

if TYPE_CHECKING:
    from playwright.sync_api import Browser


sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


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
        search, found = tab.get_by_role("textbox", name="Search"), tab.locator(".md-search-result__item a")
        for _ in range(15):  # what is typed before the index has been read is not searched for
            search.fill("")
            search.press_sequentially("runbooks")
            with contextlib.suppress(sync_api.TimeoutError):
                found.first.wait_for(timeout=2000)
                break
        assert any("operations.html" in str(link.get_attribute("href")) for link in found.all())
        assert complaints == []
        assert {url.partition(":")[0] for url in requests} <= {"file", "data", "about"}
    finally:
        context.close()
