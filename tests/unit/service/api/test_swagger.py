import asyncio
import copy
import re
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, Field

from service.api.http import problems
from service.api.info import swagger as docs


class Point(BaseModel):
    seed: int = 0


class Body(BaseModel):
    point: Point | None = Field(default=None, description="where")
    tolerance: Annotated[float | None, Field(gt=0, lt=2)] = None
    kind: Annotated[str | int, Field(examples=["a", "b"])] = "a"
    const: int = 1


def build() -> FastAPI:
    app = FastAPI(title="IGN <service>", docs_url=None, redoc_url=None)
    problems.install(app)
    docs.install(app)

    @app.post("/generate")
    async def generate(body: Body) -> None: ...

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
    assert len(named) == 4
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


def test_document_for_the_page_is_the_same_contract_in_openapi_30() -> None:
    original = get("/openapi.json").json()
    shown = get("/docs/openapi.json").json()
    assert original["openapi"].startswith("3.1")
    assert shown["openapi"] == "3.0.3"
    assert shown["paths"] == original["paths"]
    assert "/docs" not in original["paths"]
    assert shown["components"]["schemas"]["Body"]["properties"] == {
        "point": {
            "allOf": [{"$ref": "#/components/schemas/Point"}],
            "nullable": True,
            "description": "where",
        },
        "tolerance": {
            "type": "number",
            "minimum": 0.0,
            "exclusiveMinimum": True,
            "maximum": 2.0,
            "exclusiveMaximum": True,
            "nullable": True,
            "title": "Tolerance",
        },
        "kind": {
            "anyOf": [{"type": "string"}, {"type": "integer"}],
            "title": "Kind",
            "default": "a",
            "example": "a",
        },
        "const": {"type": "integer", "title": "Const", "default": 1},
    }


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"const": "x"}, {"enum": ["x"]}),
        ({"examples": []}, {}),
        ({"examples": {"one": {"value": {"const": 1}}}}, {"examples": {"one": {"value": {"const": 1}}}}),
        ({"example": {"anyOf": 1}}, {"example": {"anyOf": 1}}),
        ({"prefixItems": [{"const": 1}, {}]}, {"items": {"anyOf": [{"enum": [1]}, {}]}}),
        (
            {"type": "string", "contentMediaType": "application/octet-stream"},
            {"type": "string", "format": "binary"},
        ),
        ({"anyOf": [{"type": "null"}]}, {"anyOf": [], "nullable": True}),
    ],
)
def test_keywords_that_30_lacks(node: dict[str, Any], expected: dict[str, Any]) -> None:
    before = copy.deepcopy(node)
    assert docs.as_openapi_30({"schema": node})["schema"] == expected
    assert node == before
