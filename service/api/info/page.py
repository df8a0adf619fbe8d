"""`/`, the page “Make it real”, and `/docs`, Swagger UI: static files with a strict content security policy.

The files are those of `service/page` and of the installed package `fastapi_swagger`. Their ETag is a hash of the
content, the same in all processes. URLs are relative, so that a proxy can add a path prefix; only the image of link
previews needs an absolute one, which is made for the host of the request.
"""

import hashlib
import html
import re
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

PAGE_FOLDER: Final = Path(__file__).parents[2] / "page"
_SWAGGER: Final = Path(str(files("fastapi_swagger.resources")))
_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_HOST: Final = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_POLICY: Final = (  # images are data: and blob: URLs
    "default-src 'none'; script-src 'self'; img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; style-src 'self'"
)
PAGE_POLICY: Final = f"{_POLICY}; require-trusted-types-for 'script'"  # browsers refuse to parse text as markup
_DOCS_POLICY: Final = f"{_POLICY} 'unsafe-inline'"  # Swagger UI sets style attributes


class _File:
    def __init__(self, content: bytes, suffix: str, policy: str) -> None:
        self.content, self.media_type = content, _TYPES[suffix]
        self.tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        self.headers = {
            "Cache-Control": "no-cache",
            "Content-Security-Policy": policy,
            "ETag": self.tag,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    def respond(self, request: Request) -> Response:
        cached = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if cached & {self.tag, "*"}:
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, media_type=self.media_type, headers=self.headers)


def install(app: FastAPI) -> None:
    """Serve `/`, `/page/…`, `/docs` and `/docs/…`, to GET and HEAD."""
    index, page = _read(PAGE_POLICY, PAGE_FOLDER)
    docs_index, docs = _read(_DOCS_POLICY, PAGE_FOLDER / "docs", _SWAGGER)

    @lru_cache(maxsize=64)  # a request can name any host
    def document(base: str) -> _File:
        if not base:
            return index
        tag = f'<meta property="og:image" content="{html.escape(base)}/page/preview.png">\n<title>'
        return _File(index.content.replace(b"<title>", tag.encode(), 1), ".html", PAGE_POLICY)

    def serve(path: str, find: Callable[[Request], _File | None]) -> None:
        @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
        async def respond(request: Request) -> Response:
            file = find(request)
            if file is None:
                raise HTTPException(404)
            return file.respond(request)

    serve("/", lambda request: document(_base_url(request)))
    serve("/page/{name}", lambda request: page.get(request.path_params["name"]))
    serve("/docs", lambda _: docs_index)
    serve("/docs/{name}", lambda request: docs.get(request.path_params["name"]))


def _read(policy: str, *folders: Path) -> tuple[_File, dict[str, _File]]:
    """The document `index.html` of folders, and the other files by name."""
    paths = [path for folder in folders for path in folder.iterdir() if path.suffix in _TYPES]
    found = {path.name: _File(path.read_bytes(), path.suffix, policy) for path in paths}
    return found.pop("index.html"), found


def _base_url(request: Request) -> str:
    """The URL that the page's addresses are relative to; empty if the request does not tell."""
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        return ""
    forwarded = request.headers.get("x-forwarded-proto", "")  # of a proxy that ends TLS
    scheme = forwarded if forwarded in ("http", "https") else request.url.scheme
    return f"{scheme}://{host}{request.scope.get('root_path', '')}"
