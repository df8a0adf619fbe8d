"""The page “Make it real”, as HTTP: `tests/slow/browser` uses it."""

import io
import re
from pathlib import Path

import httpx
import pytest
from PIL import Image

from service.domain.errors import StartupError
from tests.contract.harness import Service, problem, serving, settings

FOLDER = Path(__file__).parents[2] / "service" / "page"
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}
TYPES |= {".png": "image/png", ".svg": "image/svg+xml", ".webp": "image/webp"}
FILES = sorted(path.name for path in FOLDER.iterdir() if path.is_file())
ADDRESSES = ["/", *(f"/page/{name}" for name in FILES if name != "index.html")]
MOST_LINES = 300  # of code; the document is one whole
MOST_BYTES = 300_000  # of all files
PREVIEW = '<meta property="og:image" content="{base}/page/preview.png">\n'


def named(page: str) -> set[str]:
    """What the document refers to, relative to it."""
    return set(re.findall(r'(?:src|href)="([^"#]+)"', page))


@pytest.fixture(scope="module")
def start(service: Service) -> httpx.Response:
    return service.get("/")


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_file_is_served_as_what_it_is(service: Service, address: str) -> None:
    file = FOLDER / (address.removeprefix("/page/") if address != "/" else "index.html")
    response = service.get(address)
    assert response.status_code == 200
    assert response.headers["Content-Type"].partition(";")[0] == TYPES[file.suffix]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    own = (
        PREVIEW.format(base=str(service.client.base_url).rstrip("/")).encode()
        if address == "/"
        else b""
    )
    assert response.content.replace(own, b"", 1) == file.read_bytes()
    assert file.suffix != ".js" or len(response.text.splitlines()) <= MOST_LINES
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.*")) <= MOST_BYTES


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({"Host": "ign.example:8443"}, "http://ign.example:8443"),
        ({"Host": "ign.example", "X-Forwarded-Proto": "https"}, "https://ign.example"),
        ({"Host": "[::1]:8000"}, "http://[::1]:8000"),
        ({"Host": "ign.example", "X-Forwarded-Proto": "javascript"}, "http://ign.example"),
        ({"Host": 'a"><script>'}, None),
    ],
)
def test_link_previews_find_a_picture(
    service: Service, headers: dict[str, str], base: str | None
) -> None:
    page = service.get("/", headers=headers).text
    assert page.count("og:image") == (base is not None)
    assert base is None or PREVIEW.format(base=base) in page
    with Image.open(io.BytesIO(service.get("/page/preview.png").content)) as picture:
        assert picture.size == (1200, 630)


@pytest.mark.parametrize(
    "name", ["index.html", "__init__.py", "nothing.js", "..%2fapp.py", "", "a/b.js"]
)
@pytest.mark.parametrize("folder", ["page", "docs"])
def test_nothing_else_is_served(service: Service, folder: str, name: str) -> None:
    if (folder, name) != ("docs", ""):
        problem(service.get(f"/{folder}/{name}"), 404, "not_found")


def test_a_folder_of_ign_site_is_a_second_page(models: Path, tmp_path: Path) -> None:
    both = settings(models, site=tmp_path)
    with pytest.raises(StartupError, match="IGN_SITE"), serving(both):
        pass
    for name in ("index.html", "service-worker.js", "a.xz"):
        (tmp_path / name).write_text('<html lang="en" class="site">')
    with serving(both) as running:
        assert " data-both" in running.get("/").text
        assert running.get("/site/").text == '<html lang="en" data-both class="site">'
        assert (
            running.get("/site/a.xz").headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        )
        problem(running.get("/site/a"), 404, "not_found")


def test_what_it_names_is_there_and_is_its_own(service: Service, start: httpx.Response) -> None:
    # the policy would block it
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", start.text)
    names = named(start.text) - {"site/", "../"}  # for `--site` only
    assert {"page/app.js", "page/base.css", "page/icon.svg", "docs"} <= names
    for name in names:
        text = service.get(f"/{name}").raise_for_status().text
        # what a module imports is asked for together with it, not after it has come
        if name.endswith(".js"):
            imported = re.findall(
                r'^(?:import|export) .*from "\./(.*)";$', text, flags=re.MULTILINE
            )
            assert names >= {f"page/{each}" for each in imported}, name


def test_the_policy_allows_the_service_itself_and_no_other_host(service: Service) -> None:
    expected = {f"{name} 'self'" for name in ("script-src", "style-src", "connect-src")}
    expected |= {
        f"{name} 'none'" for name in ("default-src", "base-uri", "form-action", "frame-ancestors")
    }
    expected |= {"img-src 'self' blob: data:", "require-trusted-types-for 'script'"}
    for address in ADDRESSES:
        assert set(service.get(address).headers["Content-Security-Policy"].split("; ")) == expected


def test_a_browser_asks_whether_its_copy_is_still_true(service: Service) -> None:
    tags = set()
    for address in ADDRESSES:
        first = service.get(address)
        assert first.headers["Cache-Control"] == "no-cache"
        tag = first.headers["ETag"]
        tags.add(tag)
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = service.get(address, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
            assert (
                again.headers["Content-Security-Policy"] == first.headers["Content-Security-Policy"]
            )
        assert service.get(address, headers={"If-None-Match": '"other"'}).status_code == 200
    assert len(tags) == len(ADDRESSES)


def test_swagger_ui_and_everything_it_names_come_from_the_service(service: Service) -> None:
    docs = service.get("/docs")
    start = service.get("/docs/start.js").text
    files = re.findall(r'(?:src|href)="([^"]+)"', docs.text)
    assert {file.rpartition(".")[2] for file in files} == {"css", "js", "png"}
    for file in files:
        asset = service.get(str(httpx.URL("http://service/docs").join(file).path))
        assert asset.headers["Content-Type"].partition(";")[0] == TYPES[file[file.rindex(".") :]]
    (document,) = re.findall(r'new URL\("([^"]+)"', start)
    assert service.get(f"/{document}").status_code == 200
    assert "//" not in docs.text + start  # no other host
    policy = docs.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?:|\*|unsafe-eval", policy)
    assert "<script>" not in docs.text  # inline scripts would not run
