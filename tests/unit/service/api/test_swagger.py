"""`/docs`: Swagger UI from the service alone."""

import asyncio
import re

import httpx
import pytest
from fastapi import FastAPI

from service.api.info import page
from tests.helpers.application import application


def get(path: str) -> httpx.Response:
    app = FastAPI(docs_url=None, redoc_url=None)
    page.install(app)

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(application(app)), base_url="http://service"
        ) as client:
            return await client.get(path)

    return asyncio.run(main())


def test_the_page_and_everything_it_names_come_from_the_service() -> None:
    docs, start = get("/docs"), get("/docs/start.js").text
    assert docs.headers["content-type"].startswith("text/html")
    named = re.findall(r'(?:src|href)="([^"]+)"', docs.text)
    assert {name.rpartition(".")[2] for name in named} == {"css", "js", "png"}
    kinds = {"css": "text/css", "js": "text/javascript", "png": "image/png"}
    for name in named:
        asset = get(str(httpx.URL("http://service/docs").join(name).path))
        assert asset.status_code == 200, name
        assert asset.headers["content-type"].partition(";")[0] == kinds[name.rpartition(".")[2]]
    (document,) = re.findall(r'new URL\("([^"]+)"', start)
    assert get(f"/{document}").status_code == 200
    assert "//" not in docs.text + start  # no other host


def test_the_policy_allows_no_other_host() -> None:
    docs = get("/docs")
    policy = docs.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?:|\*|unsafe-eval", policy)
    assert "<script>" not in docs.text  # inline scripts would not run


@pytest.mark.parametrize("name", ["index.html", "swagger-initializer.js", "__init__.py", "..%2f__init__.py", "nothing"])
def test_other_files_of_the_bundle_are_not_served(name: str) -> None:
    response = get(f"/docs/{name}")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
