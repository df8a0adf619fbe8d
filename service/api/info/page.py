"""`/`, the page “Make it real”, and `/docs`, Swagger UI: static files with a strict content
security policy.

The files are those of `service/page`, of the installed package `fastapi_swagger`, and at `/site/`
of a folder of `ign site`. Their ETag is a hash of the content, the same in all processes. URLs are
relative, so that a proxy can add a path prefix; only the image of link previews needs an absolute
one, which is made for the host of the request.
"""

import hashlib
import html
import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from starlette.responses import Response

from service.api.message import is_known
from service.api.problems import NoEndpoint
from service.api.request import ApiRequest, NotModified
from service.api.table import Access, Endpoint
from service.domain.errors import StartupError

PAGE_FOLDER: Final = Path(__file__).parents[2] / "page"
_SWAGGER: Final = Path(str(files("fastapi_swagger.resources")))
_TEXTS: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".txt": "text/plain",
}
_IMAGES: Final = {".png": "image/png", ".svg": "image/svg+xml", ".webp": "image/webp"}
_TYPES: Final = _TEXTS | _IMAGES | {".json": "application/json", ".xz": "application/x-xz"}
_HOST: Final = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_POLICY: Final = (  # images are data: and blob: URLs
    "default-src 'none'; script-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'self'"
)
# browsers refuse to parse text as markup
PAGE_POLICY: Final = f"{_POLICY}; require-trusted-types-for 'script'"
_DOCS_POLICY: Final = f"{_POLICY} 'unsafe-inline'"  # Swagger UI sets style attributes
# what the policy in the document of `ign site` cannot say
_SITE_POLICY: Final = "frame-ancestors 'none'"
# of a page that links to the other one
_ROOT: Final = b'<html lang="en"'
_BOTH: Final = b'<html lang="en" data-both'


class _File:
    def __init__(self, content: bytes, suffix: str, policy: str) -> None:
        self.content = content
        self.media_type = _TYPES[suffix]
        self.headers = {
            "Cache-Control": "no-cache",
            "Content-Security-Policy": policy,
            "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }


def endpoints(site: Path | None = None) -> Iterator[Endpoint]:
    """Those of `/`, `/page/…`, `/docs` and `/docs/…`, to GET and HEAD; with a folder of `ign site`,
    `/site/…` too.

    Raises StartupError if the folder is not one that `ign site` wrote.
    """
    index, page = _read(PAGE_POLICY, PAGE_FOLDER)
    docs_index, docs = _read(_DOCS_POLICY, PAGE_FOLDER / "docs", _SWAGGER)

    @lru_cache(maxsize=64)  # a request can name any host
    def document(base: str) -> _File:
        tag = (
            f'<meta property="og:image" content="{html.escape(base)}/page/preview.png">\n'
            if base
            else ""
        )
        return _File(
            index.content.replace(b"<title>", f"{tag}<title>".encode(), 1), ".html", PAGE_POLICY
        )

    yield _endpoint("/", lambda api: document(_base_url(api)))
    yield _endpoint("/page/{name}", lambda api: page.get(api.ref))
    yield _endpoint("/docs", lambda _: docs_index, "docs")
    yield _endpoint("/docs/{name}", lambda api: docs.get(api.ref), "docs")
    if site is not None:
        if not os.access(site / "service-worker.js", os.R_OK):
            raise StartupError(f"IGN_SITE={site}: `ign site` has not written this folder")
        local_index, local = _read(_SITE_POLICY, site)
        index, local[""] = (
            _File(file.content.replace(_ROOT, _BOTH, 1), ".html", policy)
            for file, policy in ((index, PAGE_POLICY), (local_index, _SITE_POLICY))
        )
        yield _endpoint("/site/{name:path}", lambda api: local.get(api.ref))


def _endpoint(
    path: str, find: Callable[[ApiRequest], _File | None], access: Access = "page"
) -> Endpoint:
    async def respond(api: ApiRequest) -> Response:
        file = find(api)
        if file is None:
            raise NoEndpoint
        if is_known(file.headers, api.headers):
            raise NotModified(file.headers)
        return Response(file.content, media_type=file.media_type, headers=file.headers)

    return Endpoint(path, respond, methods=("GET", "HEAD"), access=access)


def _read(policy: str, *folders: Path) -> tuple[_File, dict[str, _File]]:
    """The document `index.html` of folders, and the other files by their path."""
    found = {
        path.relative_to(folder).as_posix(): _File(path.read_bytes(), path.suffix, policy)
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in _TYPES
    }
    return found.pop("index.html"), found


def _base_url(api: ApiRequest) -> str:
    """The URL that the page's addresses are relative to; empty if the request does not tell."""
    host = api.headers.get(b"host", "")
    if not _HOST.fullmatch(host):
        return ""
    forwarded = api.headers.get(b"x-forwarded-proto", "")  # of a proxy that ends TLS
    scheme = forwarded if forwarded in ("http", "https") else api.scope["scheme"]
    return f"{scheme}://{host}{api.scope.get('root_path', '')}"
