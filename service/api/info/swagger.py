"""`/docs` without the internet: Swagger UI from the installed `swagger_ui_bundle`, under a strict content policy.

The bundled Swagger UI reads OpenAPI 3.0 only, while FastAPI writes 3.1, so the page is given the same document put
into 3.0 terms; `/openapi.json` stays as FastAPI wrote it.
"""

import html
from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from swagger_ui_bundle import swagger_ui_path

_ASSETS: Final = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_CACHE: Final = {"Cache-Control": "public, max-age=86400"}
# Swagger UI sets style attributes and embeds its icons; nothing is fetched from anywhere else.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Addresses are relative, so that the page also works behind a proxy's path prefix.
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# The validator badge would send the document's address to a public service.
_START: Final = """SwaggerUIBundle({
  url: new URL("docs/openapi.json", document.baseURI).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""


def install(app: FastAPI) -> None:
    """Serve `/docs` and what it needs; build the app with ``docs_url=None, redoc_url=None``."""

    @app.get("/docs", include_in_schema=False)
    async def page() -> Response:
        content = _PAGE.format(title=html.escape(app.title))
        return HTMLResponse(content, headers={"Content-Security-Policy": _POLICY})

    @app.get("/docs/start.js", include_in_schema=False)
    async def start() -> Response:
        return Response(_START, media_type="text/javascript", headers=_CACHE)

    @app.get("/docs/openapi.json", include_in_schema=False)
    async def document() -> Response:
        return JSONResponse(as_openapi_30(app.openapi()))

    @app.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise HTTPException(404)
        return FileResponse(swagger_ui_path / name, media_type=_ASSETS[name], headers=_CACHE)


def as_openapi_30(document: dict[str, Any]) -> dict[str, Any]:
    """The same OpenAPI 3.1 document in terms of 3.0.3; the argument is left as it is."""
    converted: dict[str, Any] = _convert(document)
    return converted | {"openapi": "3.0.3"}


def _convert(node: Any) -> Any:
    if isinstance(node, list):
        return [_convert(item) for item in node]
    if not isinstance(node, dict):
        return node
    converted: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("example", "default", "enum") or (key == "examples" and isinstance(value, dict)):
            converted[key] = value  # payloads, not schemas
        elif key == "properties" and isinstance(value, dict):
            converted[key] = {name: _convert(schema) for name, schema in value.items()}
        else:
            converted.update(_KEYWORDS.get(key, _same)(key, _convert(value)))
    return converted


def _same(key: str, value: Any) -> dict[str, Any]:
    return {key: value}


_NULL: Final = {"enum": [None], "nullable": True}  # the type null, which 3.0 lacks


def _any_of(_: str, options: Any) -> dict[str, Any]:
    real = [option for option in options if option != _NULL]
    nullable = {"nullable": True} if len(real) < len(options) else {}
    if len(real) != 1:
        return {"anyOf": real} | nullable
    # A $ref may have no neighbours in 3.0.
    return ({"allOf": real} if "$ref" in real[0] else real[0]) | nullable


def _bound(key: str, value: Any) -> dict[str, Any]:
    return {key: True, "minimum" if key == "exclusiveMinimum" else "maximum": value}


_KEYWORDS: Final[dict[str, Callable[[str, Any], dict[str, Any]]]] = {
    "anyOf": _any_of,
    "type": lambda key, value: _NULL if value == "null" else {key: value},
    "const": lambda _, value: {"enum": [value]},
    "examples": lambda _, values: {"example": values[0]} if values else {},
    "exclusiveMinimum": _bound,
    "exclusiveMaximum": _bound,
    "prefixItems": lambda _, items: {"items": {"anyOf": items}},
    "contentMediaType": lambda _, __: {"format": "binary"},
}
