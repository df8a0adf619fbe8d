"""PDF in, PDF out for `ign project`: the pages of a document as images, and back.

Needs pypdfium2, the extra `pdf`. The pages keep their size, but for a part of a pixel; text layers,
links and bookmarks are lost.
"""

import argparse
import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
from PIL import Image

from ign_client._cli import DONE, REFUSED
from service.domain.errors import StartupError

SUFFIX: Final = ".pdf"
POINTS_PER_INCH: Final = 72
# Dots per inch: of a page without pictures, and the range for one with them.
DPI: Final = 300
LEAST_DPI: Final = 150
MOST_DPI: Final = 400
QUALITY: Final = 90  # of the JPEG files in the new document


def is_pdf(text: str | Path) -> bool:
    """Whether a file is a document by its name."""
    return Path(text).suffix.lower() == SUFFIX


def project_documents(options: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> int:
    """Run `ign project` on the pages of documents; returns the exit status of ``run``.

    ``options`` are those of the command, all inputs documents; ``run`` runs it on images. A page
    that fails stays as it was; nothing is written if the command is interrupted.

    Raises StartupError for inputs and outputs that do not fit, and for a file that is no document.
    """
    documents = [Path(text) for text in options.inputs]
    if not all(map(is_pdf, documents)):
        raise StartupError("PDF files and images do not go together; give them in two commands")
    target: Path = options.out
    if is_pdf(target) and len(documents) > 1:
        raise StartupError(f"--out: {target} is one file, but there are {len(documents)}")
    targets = [target if is_pdf(target) else target / document.name for document in documents]
    for file in targets:
        if file.exists() and not options.force:
            raise StartupError(f"{file} exists; --force overwrites")
    with TemporaryDirectory() as folder:
        pages = Path(folder, "pages")
        made = Path(folder, "made")
        resolutions = [_unpack(document, pages / str(i)) for i, document in enumerate(documents)]
        options.inputs = [str(pages)]
        options.out = made
        options.format = "png"
        # The command would name files of the temporary folder.
        with contextlib.redirect_stdout(io.StringIO()):
            status = run(options)
        if status not in (DONE, REFUSED):  # interrupted: the other pages were not tried
            return status
        for i, (file, dpis) in enumerate(zip(targets, resolutions, strict=True)):
            if (made / str(i)).is_dir():
                names = sorted(path.name for path in (pages / str(i)).iterdir())
                found = [
                    path if (path := made / str(i) / name).exists() else pages / str(i) / name
                    for name in names
                ]
                _pack(found, file, dpis)
                click.echo(f"{file}: {len(found)} page{'s' if len(found) > 1 else ''}")
    return status


def _unpack(document: Path, folder: Path) -> list[float]:
    """Write each page as a PNG file; returns their resolutions, those of the finest pictures."""
    pdfium = _pdfium()
    dpis = []
    characters = 0
    try:
        with pdfium.PdfDocument(document) as pdf:
            folder.mkdir(parents=True)
            digits = len(str(len(pdf)))
            for number, page in enumerate(pdf, 1):
                dpis.append(_resolution(pdfium, page))
                # It rounds the size up: by a pixel, where that of a scan is whole but for an error.
                scale = dpis[-1] / POINTS_PER_INCH * (1 - 1e-6)
                image = page.render(scale=scale).to_pil()
                image.save(folder / f"{number:0{digits}}.png", compress_level=1)
                characters += page.get_textpage().count_chars()
    except FileNotFoundError:
        raise StartupError(f"{document}: no such file") from None
    except pdfium.PdfiumError as exc:
        raise StartupError(f"{document} is no PDF that can be read: {exc}") from None
    if characters:
        click.echo(f"{document}: the result has no text layer; ocrmypdf adds one", err=True)
    return dpis


def _resolution(pdfium: Any, page: Any) -> float:
    """Dots per inch of the finest picture of a page, within the range."""
    found = []
    for picture in page.get_objects(filter=[pdfium.raw.FPDF_PAGEOBJ_IMAGE], max_depth=3):
        left, _, right, _ = picture.get_bounds()
        if right - left > page.get_width() / 2:  # a scan, and no logo
            found.append(picture.get_px_size()[0] * POINTS_PER_INCH / (right - left))
    return min(max(*found, LEAST_DPI), MOST_DPI) if found else DPI


def _pack(images: Sequence[Path], document: Path, dpis: Sequence[float]) -> None:
    """Write images as the pages of a document, which appears whole or not at all."""
    document.parent.mkdir(parents=True, exist_ok=True)
    part = document.with_name(f".{document.name}.part")
    pdfium = _pdfium()
    try:
        # Only the JPEG files stay in memory, until the end.
        with pdfium.PdfDocument.new() as pdf:
            for path, dpi in zip(images, dpis, strict=True):
                file = io.BytesIO()
                with Image.open(path) as image:
                    image.save(file, "JPEG", quality=QUALITY)
                    size = [side * POINTS_PER_INCH / dpi for side in image.size]
                picture = pdfium.PdfImage.new(pdf)
                picture.load_jpeg(file, inline=True)
                picture.set_matrix(pdfium.PdfMatrix().scale(*size))
                page = pdf.new_page(*size)
                page.insert_obj(picture)
                page.gen_content()
            pdf.save(part)
        part.replace(document)
    finally:
        part.unlink(missing_ok=True)


def _pdfium() -> Any:
    try:
        import pypdfium2
    except ImportError:
        raise StartupError("PDF files need the extra `pdf`: pip install pypdfium2") from None
    return pypdfium2
