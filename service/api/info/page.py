"""`/`: the page “Make it real”, files of `service/page` under a strict content policy.

They are small and few, so they are kept in memory, each with a tag of its content: a browser asks whether what it has
is still true, which also holds after an upgrade and behind several processes.
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
_START: Final = "index.html"
# Pictures come as base64 and as blobs; nothing is fetched from anywhere else, and no text ever becomes markup.
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
    start = files.pop(_START)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return _answer(start, request.headers)

    @app.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def asset(request: Request, name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return _answer(files[name], request.headers)


def _read(folder: Path) -> dict[str, _File]:
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            found[path.name] = _File(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


def _answer(file: _File, headers: Mapping[str, str]) -> Response:
    known = {tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")}
    answered = _HEADERS | {"ETag": file.tag}
    if known & {file.tag, "*"}:
        return Response(status_code=304, headers=answered)
    return Response(file.content, media_type=file.media_type, headers=answered)
