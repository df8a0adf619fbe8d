"""`/`: the page “Make it real”, files of `service/page` with a strict content security policy.

The files are small, so they are kept in memory. Their ETag is a hash of the content, which is the same in all processes
and changes with an upgrade.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
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
    ".svg": "image/svg+xml",
}
_INDEX: Final = "index.html"
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
    tag: str


def install(app: FastAPI) -> None:
    """Serve `/` and `/page/…`, to GET and HEAD."""
    files = _read(_FOLDER)
    index = files.pop(_INDEX)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return _respond(index, request.headers)

    @app.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def asset(request: Request, name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return _respond(files[name], request.headers)


def _read(folder: Path) -> dict[str, _File]:
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            files[path.name] = _File(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return files


def _respond(file: _File, headers: Mapping[str, str]) -> Response:
    cached = {tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")}
    response_headers = _HEADERS | {"ETag": file.tag}
    if cached & {file.tag, "*"}:
        return Response(status_code=304, headers=response_headers)
    return Response(file.content, media_type=file.media_type, headers=response_headers)
