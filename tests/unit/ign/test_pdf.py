"""PDF in, PDF out: `ign project scan.pdf --out clean.pdf`."""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ign.pdf import project_documents
from service.domain.errors import StartupError

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


def options(*inputs: Path, out: Path, force: bool = False) -> argparse.Namespace:
    return argparse.Namespace(inputs=[str(path) for path in inputs], out=out, force=force)


def invert(given: argparse.Namespace) -> int:
    """Stands for the command on images: writes their negatives."""
    (folder,) = map(Path, given.inputs)
    for file in folder.rglob("*.png"):
        target = given.out / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            assert abs(image.info.get("dpi", (200, 200))[0] - 200) < 1
            Image.fromarray(255 - np.asarray(image.convert("L"))).save(target)
    return 0


def without_the_second(given: argparse.Namespace) -> int:
    invert(given)
    next(given.out.rglob("2.png")).unlink()
    return 1


def pages(file: Path) -> list[tuple[tuple[float, float], float]]:
    """Size in points and median grey of each page."""
    with pypdfium2.PdfDocument(file) as document:
        return [
            (page.get_size(), float(np.median(page.render(scale=1).to_numpy())))
            for page in document
        ]


def test_pages_keep_their_order_and_size(document: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.pdf"
    assert project_documents(options(document, out=out), invert) == 0
    found = pages(out)
    assert [size for size, _ in found] == [pytest.approx(size, abs=1) for size in SIZES]
    assert [grey for _, grey in found] == [pytest.approx(105, abs=3)] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean.pdf", "scan.pdf"]


def test_each_page_keeps_its_resolution(mixed: Path, tmp_path: Path) -> None:
    def copy(given: argparse.Namespace) -> int:
        shutil.copytree(given.inputs[0], given.out)
        return 0

    out = tmp_path / "clean.pdf"
    assert project_documents(options(mixed, out=out), copy) == 0
    with pypdfium2.PdfDocument(out) as document:
        pictures = [next(page.get_objects()) for page in document]
        assert [picture.get_px_size() for picture in pictures] == [(600, 400), (900, 600)]


def test_a_text_layer_that_goes_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "text.pdf"
    source.write_bytes(TEXT)
    assert project_documents(options(source, out=tmp_path / "clean.pdf"), invert) == 0
    assert "text.pdf: the result has no text layer" in capsys.readouterr().err


def test_each_document_becomes_one_of_its_name(
    document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "Other.PDF"
    shutil.copy(document, other)
    out = tmp_path / "clean"
    assert project_documents(options(document, other, out=out), invert) == 0
    assert sorted(path.name for path in out.iterdir()) == ["Other.PDF", "scan.pdf"]
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "2 pages",
        "2 pages",
    ]


def test_a_page_that_fails_stays_as_it_was(document: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.pdf"
    assert project_documents(options(document, out=out), without_the_second) == 1
    assert [grey for _, grey in pages(out)] == [
        pytest.approx(105, abs=3),
        pytest.approx(150, abs=3),
    ]


@pytest.mark.parametrize("status", [2, 130])
def test_nothing_is_written_if_the_command_was_refused_or_interrupted(
    document: Path, tmp_path: Path, status: int
) -> None:
    out = tmp_path / "clean.pdf"

    def ended(given: argparse.Namespace) -> int:
        without_the_second(given)
        return status

    assert project_documents(options(document, out=out), ended) == status
    assert not out.exists()


def test_what_does_not_fit_is_refused(document: Path, tmp_path: Path) -> None:
    image = tmp_path / "page.png"
    Image.new("L", (8, 8)).save(image)
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"no document")
    out = tmp_path / "out.pdf"
    for given, words in (
        (options(document, image, out=out), "two commands"),
        (options(document, document, out=out), "one file"),
        (options(broken, out=out), "broken.pdf"),
        (options(tmp_path / "absent.pdf", out=out), "no such file"),
        (options(document, out=document), "--force"),
    ):
        with pytest.raises(StartupError, match=words):
            project_documents(given, invert)
    assert not out.exists()


def test_without_the_extra_it_says_what_to_install(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(StartupError, match="pip install pypdfium2"):
        project_documents(options(document, out=tmp_path / "out.pdf"), invert)
