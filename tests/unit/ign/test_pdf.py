"""PDF in, PDF out: `ign project scan.pdf --out clean.pdf`."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image, ImageDraw

from ign.local import LocalClient
from service.domain.errors import Draining
from tests.helpers.folders import contents
from tests.unit.ign.test_commands import ign
from tests.unit.ign.test_local import models as models

pypdfium2 = pytest.importorskip("pypdfium2", reason="pypdfium2 is missing, so no PDF was read")

SIZES = ((300, 200), (160, 240))  # of the pages, in points
# a page with one word; readers repair the missing cross-reference table
TEXT = b"""%PDF-1.4
1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj
2 0 obj <</Type /Pages /Kids [3 0 R] /Count 1>> endobj
3 0 obj <</Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] /Contents 4 0 R
/Resources <</Font <</F 5 0 R>>>>>> endobj
4 0 obj <</Length 33>> stream
BT /F 24 Tf 20 40 Td (word) Tj ET
endstream endobj
5 0 obj <</Type /Font /Subtype /Type1 /BaseFont /Helvetica>> endobj
trailer <</Root 1 0 R>>
"""


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """Two pages of 200 dots per inch, each with a grey ground and its number of black bars."""
    pages = []
    for number, size in enumerate(SIZES, 1):
        width, height = (round(side * 200 / 72) for side in size)
        page = Image.new("L", (width, height), 150)
        for bar in range(number):
            ImageDraw.Draw(page).rectangle((60, 60 + 80 * bar, 200, 90 + 80 * bar), fill=0)
        pages.append(page)
    file = tmp_path / "scan.pdf"
    pages[0].save(file, save_all=True, append_images=pages[1:], resolution=200)
    return file


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A page of 300 dots per inch after one of 200."""
    file = tmp_path / "mixed.pdf"
    with pypdfium2.PdfDocument.new() as both:
        for dpi in (200, 300):
            part = tmp_path / f"{dpi}.pdf"
            Image.new("L", (3 * dpi, 2 * dpi), 150).save(part, resolution=dpi)
            with pypdfium2.PdfDocument(part) as single:
                both.import_pages(single)
        both.save(file)
    return file


def project(words: str, **variables: str) -> Result:
    """The model makes 139 of grey 150."""
    return ign(f"project --local --model pages --jobs 1 {words}", **variables)


def pages(file: str) -> list[tuple[tuple[float, float], float]]:
    """Size in points and median grey of each page."""
    with pypdfium2.PdfDocument(file) as document:
        return [
            (page.get_size(), float(np.median(page.render(scale=1).to_numpy())))
            for page in document
        ]


def test_pages_keep_their_order_and_size(document: Path, tmp_path: Path) -> None:
    assert "PDF" in ign("project --help").output
    assert project("scan.pdf -o out/clean.pdf").output == "out/clean.pdf: 2 pages\n"
    found = pages("out/clean.pdf")
    assert [size for size, _ in found] == [pytest.approx(size, abs=1) for size in SIZES]
    assert [grey for _, grey in found] == [pytest.approx(139, abs=3)] * 2
    assert contents(tmp_path / "out").keys() == {"clean.pdf"}


def test_each_page_keeps_its_resolution(mixed: Path) -> None:
    assert project("mixed.pdf -o clean.pdf").exit_code == 0
    with pypdfium2.PdfDocument("clean.pdf") as document:
        pictures = [next(page.get_objects()) for page in document]
        assert [picture.get_px_size() for picture in pictures] == [(600, 400), (900, 600)]


def test_a_text_layer_that_goes_is_named() -> None:
    Path("text.pdf").write_bytes(TEXT)
    assert "text.pdf: the result has no text layer" in project("text.pdf -o clean.pdf").stderr


def test_each_document_becomes_one_of_its_name(document: Path) -> None:
    shutil.copy(document, "Other.PDF")
    done = project("scan.pdf Other.PDF -o clean")
    assert done.output == "clean/scan.pdf: 2 pages\nclean/Other.PDF: 2 pages\n"
    assert contents(Path("clean")).keys() == {"Other.PDF", "scan.pdf"}


def test_a_page_that_fails_stays_as_it_was(document: Path) -> None:
    assert project("scan.pdf -o clean.pdf", IGN_MAX_PIXELS="400000").exit_code == 1
    assert [grey for _, grey in pages("clean.pdf")] == [
        pytest.approx(150, abs=3),
        pytest.approx(139, abs=3),
    ]


@pytest.mark.parametrize(
    ("error", "status"), [(Draining("stopped"), 1), (KeyboardInterrupt(), 130)]
)
def test_nothing_is_written_if_the_command_ends_early(
    document: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    run = LocalClient.project
    errors = iter([None, error])

    def ending(*arguments: Any, **options: Any) -> Any:
        if (error := next(errors)) is not None:
            raise error
        return run(*arguments, **options)

    monkeypatch.setattr(LocalClient, "project", ending)
    assert project("scan.pdf -o clean.pdf").exit_code == status
    assert not Path("clean.pdf").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("scan.pdf page.png -o out.pdf", "PDF files and images do not go together;"),
        ("scan.pdf scan.pdf -o out.pdf", "--out out.pdf: two PDF files would become one;"),
        ("scan.pdf other/scan.pdf -o out", "--out out: two PDF files would become one;"),
        ("broken.pdf -o out.pdf", "broken.pdf is no PDF "),
        ("absent.pdf -o out.pdf", "absent.pdf: no such file"),
        ("scan.pdf -o scan.pdf", "scan.pdf is there already; --force"),
        ("scan.pdf -o out.png", "--out out.png: expected .pdf, or a folder"),
        ("scan.pdf -o out.pdf --format png", "--format png: PDF files become "),
        ("page.png -o out.pdf", "--out out.pdf: only PDF files become "),
        # a model of digits, which is also the default
        ("--model toy scan.pdf -o out.pdf", "toy/1 makes every page 8×8 pixels; "),
    ],
)
def test_what_does_not_fit_is_refused(document: Path, words: str, says: str) -> None:
    Image.new("L", (8, 8)).save("page.png")
    Path("broken.pdf").write_bytes(b"no document")
    before = contents(Path())
    done = project(words)
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert done.output.startswith(f"ign project: {says}")
    assert contents(Path()) == before


def test_without_the_extra_it_says_what_to_install(
    document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    assert "pip install pypdfium2" in project("scan.pdf -o out.pdf").output
