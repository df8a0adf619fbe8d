"""`/`, the page “Make it real”, and `/docs`, Swagger UI: static files with a strict content security policy.

The files are those of `service/page`, of the installed package `fastapi_swagger`, and at `/site/` of a folder of `ign
site`. Their ETag is a hash of the content, the same in all processes. URLs are relative, so that a proxy can add a path
prefix; only the image of link previews needs an absolute one, which is made for the host of the request.
"""

import hashlib
import html
import os
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

from service.domain.errors import StartupError

PAGE_FOLDER: Final = Path(__file__).parents[2] / "page"
_SWAGGER: Final = Path(str(files("fastapi_swagger.resources")))
_TEXTS: Final = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".txt": "text/plain"}
_IMAGES: Final = {".png": "image/png", ".svg": "image/svg+xml", ".webp": "image/webp"}
_TYPES: Final = _TEXTS | _IMAGES | {".json": "application/json", ".xz": "application/x-xz"}
_HOST: Final = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_POLICY: Final = (  # images are data: and blob: URLs
    "default-src 'none'; script-src 'self'; img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; style-src 'self'"
)
PAGE_POLICY: Final = f"{_POLICY}; require-trusted-types-for 'script'"  # browsers refuse to parse text as markup
_DOCS_POLICY: Final = f"{_POLICY} 'unsafe-inline'"  # Swagger UI sets style attributes
_SITE_POLICY: Final = "frame-ancestors 'none'"  # what the policy in the document of `ign site` cannot say
_ROOT, _BOTH = b'<html lang="en"', b'<html lang="en" data-both'  # of a page that links to the other one


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


def install(app: FastAPI, site: Path | None = None) -> None:
    """Serve `/`, `/page/…`, `/docs` and `/docs/…`, to GET and HEAD; with a folder of `ign site`, `/site/…` too.

    Raises StartupError if the folder is not one that `ign site` wrote.
    """
    index, page = _read(PAGE_POLICY, PAGE_FOLDER)
    docs_index, docs = _read(_DOCS_POLICY, PAGE_FOLDER / "docs", _SWAGGER)

    @lru_cache(maxsize=64)  # a request can name any host
    def document(base: str) -> _File:
        tag = f'<meta property="og:image" content="{html.escape(base)}/page/preview.png">\n' if base else ""
        return _File(index.content.replace(b"<title>", f"{tag}<title>".encode(), 1), ".html", PAGE_POLICY)

    def serve(path: str, find: Callable[[Request], _File | None]) -> None:
        @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
        async def respond(request: Request) -> Response:
            if file := find(request):
                return file.respond(request)
            raise HTTPException(404)

    serve("/", lambda request: document(_base_url(request)))
    serve("/page/{name}", lambda request: page.get(request.path_params["name"]))
    serve("/docs", lambda _: docs_index)
    serve("/docs/{name}", lambda request: docs.get(request.path_params["name"]))
    if site is not None:
        if not os.access(site / "service-worker.js", os.R_OK):
            raise StartupError(f"IGN_SITE={site}: `ign site` has not written this folder")
        local_index, local = _read(_SITE_POLICY, site)
        index, local[""] = (
            _File(file.content.replace(_ROOT, _BOTH, 1), ".html", policy)
            for file, policy in ((index, PAGE_POLICY), (local_index, _SITE_POLICY))
        )
        serve("/site/{name:path}", lambda request: local.get(request.path_params["name"]))


def _read(policy: str, *folders: Path) -> tuple[_File, dict[str, _File]]:
    """The document `index.html` of folders, and the other files by their path."""
    paths = [(folder, path) for folder in folders for path in folder.rglob("*") if path.suffix in _TYPES]
    files = [(path.relative_to(folder).as_posix(), path) for folder, path in paths]
    found = {name: _File(path.read_bytes(), path.suffix, policy) for name, path in files}
    return found.pop("index.html"), found


def _base_url(request: Request) -> str:
    """The URL that the page's addresses are relative to; empty if the request does not tell."""
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        return ""
    forwarded = request.headers.get("x-forwarded-proto", "")  # of a proxy that ends TLS
    scheme = forwarded if forwarded in ("http", "https") else request.url.scheme
    return f"{scheme}://{host}{request.scope.get('root_path', '')}"
