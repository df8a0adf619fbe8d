import asyncio
import re

import httpx
import pytest
from fastapi import FastAPI

from service.api import problems
from service.api.info import swagger


def build() -> FastAPI:
    app = FastAPI(title="IGN <service>", docs_url=None, redoc_url=None)
    problems.install(app)
    swagger.install(app)

    return app


def get(path: str) -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(build())
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.get(path)

    return asyncio.run(main())


def test_the_page_and_everything_it_names_come_from_the_service() -> None:
    page = get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "IGN &lt;service&gt;" in page.text
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(named) > 3
    for name in named:
        asset = get(str(httpx.URL("http://service/docs").join(name).path))
        assert asset.status_code == 200, name
        assert asset.content
    start = get("/docs/start.js")
    document = re.search(r'new URL\("([^"]+)"', start.text)
    assert document is not None
    assert get(f"/{document[1]}").status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/docs/start.js"])
def test_the_page_names_no_other_host(path: str) -> None:
    assert "//" not in get(path).text


def test_the_policy_allows_no_other_host() -> None:
    policy = get("/docs").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?:|\*|unsafe-eval", policy)
    assert "<script>" not in get("/docs").text  # inline scripts would not run


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("swagger-ui.css", "text/css"),
        ("swagger-ui-bundle.js", "text/javascript"),
        ("favicon-32x32.png", "image/png"),
        ("start.js", "text/javascript"),
    ],
)
def test_assets_have_their_types(name: str, kind: str) -> None:
    assert get(f"/docs/{name}").headers["content-type"].startswith(kind)


@pytest.mark.parametrize("name", ["index.html", "swagger-initializer.js", "..%2f__init__.py", "nothing"])
def test_other_files_of_the_bundle_are_not_served(name: str) -> None:
    response = get(f"/docs/{name}")
    assert response.status_code == 404
    assert response.json()["code"] == "not_found"
