"""`/`: the page “Make it real”, files of `service/page` with a strict content security policy.

The files are small, so they are kept in memory. Their ETag is a hash of the content, which is the same in all processes
and changes with an upgrade. The document names the picture of link previews, whose URL has to be absolute, for the host
of the request.
"""

import hashlib
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_FOLDER: Final = Path(__file__).parents[2] / "page"
_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_INDEX: Final = "index.html"
_PREVIEW: Final = "page/preview.png"
_HOST: Final = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
# Images are data: and blob: URLs. Trusted Types make the browser refuse to parse text as markup.
_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str

    @property
    def tag(self) -> str:
        """The ETag."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


def install(app: FastAPI) -> None:
    """Serve `/` and `/page/…`, to GET and HEAD."""
    files = _read(_FOLDER)
    index = files.pop(_INDEX)

    @lru_cache(maxsize=64)  # a request can name any host
    def document(base: str) -> _File:
        if not base:
            return index
        tag = f'<meta property="og:image" content="{html.escape(base)}/{_PREVIEW}">\n<title>'
        return _File(index.content.replace(b"<title>", tag.encode(), 1), index.media_type)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return _respond(document(_base_url(request)), request.headers)

    @app.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def asset(request: Request, name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return _respond(files[name], request.headers)


def _read(folder: Path) -> dict[str, _File]:
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _TYPES:
            files[path.name] = _File(path.read_bytes(), _TYPES[path.suffix])
    return files


def _base_url(request: Request) -> str:
    """The URL that the page's addresses are relative to; empty if the request does not tell."""
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        return ""
    forwarded = request.headers.get("x-forwarded-proto", "")  # of a proxy that ends TLS
    scheme = forwarded if forwarded in ("http", "https") else request.url.scheme
    return f"{scheme}://{host}{request.scope.get('root_path', '')}"


def _respond(file: _File, headers: Mapping[str, str]) -> Response:
    cached = {tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")}
    response_headers = _HEADERS | {"ETag": file.tag}
    if cached & {file.tag, "*"}:
        return Response(status_code=304, headers=response_headers)
    return Response(file.content, media_type=file.media_type, headers=response_headers)
