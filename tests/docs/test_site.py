"""The documentation site builds without a warning, and loads nothing from other hosts."""

import re
import sys
from pathlib import Path

import click
import pytest

from benchmarks.harness.processes import ROOT
from docs import site_reference
from docs.site_reference import commands_page
from ign.__main__ import main
from tests.helpers.live import run


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site(tmp_path_factory.mktemp("site"))


@pytest.mark.slow
def test_every_page_is_on_the_site(site: Path) -> None:
    sources = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    pages = {
        f"{source.removesuffix('.md')}.html" for source in sources | site_reference.pages().keys()
    }
    pages = {"index.html" if page == "README.html" else page for page in pages}
    assert pages <= {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    navigation = (site / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{page}"' in navigation for page in pages - {"index.html"})


@pytest.mark.slow
def test_pages_work_from_disk(site: Path) -> None:
    """Links are relative, and styles, fonts and scripts are files beside the page."""
    for path in site.rglob("*.html"):
        # a web server sends it for any address, so its links are absolute
        if path.name == "404.html":
            continue
        html = path.read_text(encoding="utf-8")
        for target in re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="([^"#?]+)', html):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


# The page of commands that the site makes names every command


def test_commands_have_a_section_with_their_options() -> None:
    page = commands_page()
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert headings[0] == "ign"
    assert headings[1:] == [f"ign {name}" for name in main.list_commands(click.Context(main))]
    sections = dict(zip(headings, re.split(r"^## .+$", page, flags=re.MULTILINE)[1:], strict=True))
    for heading, option in [
        ("ign serve", "--port"),
        ("ign train", "--corruptions"),
        ("ign generate", "--seed"),
    ]:
        assert re.search(rf"(?<![\w-]){option}\b", sections[heading])


# Building it


def build_site(out: Path) -> Path:
    """Build the site in a folder; a warning of mkdocs fails."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(out),
    ]
    done = run(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    return out
