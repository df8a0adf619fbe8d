"""The documentation site builds without a warning, and loads nothing from other hosts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.processes import ROOT
from docs import site_reference


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
def test_every_page_is_on_the_site(site: Path) -> None:
    sources = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    pages = {f"{source.removesuffix('.md')}.html" for source in sources | site_reference.pages().keys()}
    pages = {"index.html" if page == "README.html" else page for page in pages}
    assert pages <= {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    navigation = (site / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{page}"' in navigation for page in pages - {"index.html"})


@pytest.mark.slow
def test_pages_work_from_disk(site: Path) -> None:
    """Links are relative, and styles, fonts and scripts are files beside the page."""
    for path in site.rglob("*.html"):
        if path.name == "404.html":  # a web server sends it for any address, so its links are absolute
            continue
        html = path.read_text(encoding="utf-8")
        for target in re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="([^"#?]+)', html):
            # Only a browser that opens the page from disk loads this; without it the search field stays empty.
            if target != "https://unpkg.com/iframe-worker/shim":
                assert (path.parent / target).exists(), f"{path.name}: {target}"
