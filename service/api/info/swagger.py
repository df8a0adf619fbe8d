"""`/docs`: Swagger UI, served from the installed package `fastapi_swagger`, so that it works without the internet."""

import html
from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response

_FOLDER: Final = Path(str(files("fastapi_swagger.resources")))
_ASSETS: Final = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_CACHE: Final = {"Cache-Control": "public, max-age=86400"}
# Swagger UI sets style attributes, embeds icons as data: URLs, and shows pictures of answers as blob: URLs. All other
# content must come from this service.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The URLs are relative, so that the page also works behind a proxy that adds a path prefix.
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="stylesheet" href="docs/start.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# Swagger UI has colours for both schemes, chosen by a class. Small pictures are shown large, with their pixels.
_STYLE: Final = """html { color-scheme: light; background: #fff; }
html.dark-mode { color-scheme: dark; background: #1c2022; }
body { margin: 0; }
.swagger-ui .info { margin: 32px 0; }
.swagger-ui .info img { image-rendering: pixelated; }
.swagger-ui .response-col_description img { min-width: 112px; image-rendering: pixelated; }
"""
# `validatorUrl: null` turns off the validator badge, which would send the URL of the document to a public service.
_START: Final = """const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", colour);
colour();
SwaggerUIBundle({
  url: new URL("openapi.json", document.baseURI).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  validatorUrl: null,
});
"""


def install(app: FastAPI) -> None:
    """Serve `/docs` and its assets. Build ``app`` with ``docs_url=None, redoc_url=None``."""

    @app.get("/docs", include_in_schema=False)
    async def page() -> Response:
        content = _PAGE.format(title=html.escape(app.title))
        return HTMLResponse(content, headers={"Content-Security-Policy": _POLICY})

    @app.get("/docs/start.js", include_in_schema=False)
    async def start() -> Response:
        return Response(_START, media_type="text/javascript", headers=_CACHE)

    @app.get("/docs/start.css", include_in_schema=False)
    async def style() -> Response:
        return Response(_STYLE, media_type="text/css", headers=_CACHE)

    @app.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise HTTPException(404)
        return FileResponse(_FOLDER / name, media_type=_ASSETS[name], headers=_CACHE)
