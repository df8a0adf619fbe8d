"""PDF in, PDF out for `ign project`: the pages of a document as images, and back.

Needs pypdfium2, the extra `pdf`. The pages keep their size, but for a part of a pixel; text layers,
links and bookmarks are lost.
"""

import argparse
import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
from PIL import Image

from ign_client import Client
from ign_client._batches import Terminal, check_free, form_of, require_file, save
from ign_client._cli import project
from ign_client._picture import Picture
from service.domain.errors import StartupError

POINTS_PER_INCH: Final = 72


def project_files(client: Client, options: argparse.Namespace, terminal: Terminal) -> bool:
    """Run `ign project` on images, or on the pages of documents; returns whether all succeeded.

    A page that fails stays as it was; nothing is written if the command ends early. Raises
    StartupError for inputs, outputs and models that do not fit, and for a file that is no document.
    """
    documents = [Path(text) for text in options.inputs if _is_pdf(text)]
    if not documents:
        inside = (file for text in options.inputs for file in Path(text).rglob("*.[pP][dD][fF]"))
        if left_out := next(inside, None):
            terminal.error(f"{left_out}: left out, as any PDF in a folder; name it itself")
        if _is_pdf(options.out):
            raise StartupError(f"--out {options.out}: only PDF files become a PDF file")
        return project(client, options, terminal)
    if len(documents) < len(options.inputs):
        raise StartupError("PDF files and images do not go together; give them in two commands")
    out: Path = options.out
    is_file = form_of(out, ["pdf"])
    targets = {out if is_file else out / document.name: document for document in documents}
    if len(targets) < len(documents):
        raise StartupError(f"--out {out}: two PDF files would become one; give them other names")
    check_free(targets, options.force)
    _check_options(client, options)
    with TemporaryDirectory() as folder:
        options.out = Path(folder, "made")
        options.inputs = [folder]
        options.format = "png"
        unpacked = {
            target: _unpack(document, Path(folder, document.name))
            for target, document in targets.items()
        }
        # The command would name files of the temporary folder.
        with redirect_stdout(io.StringIO()):
            done = project(client, options, terminal)
        for target, dpis in unpacked.items():
            made = {page: options.out / page.relative_to(folder) for page in dpis}
            if any(map(Path.exists, made.values())):
                found = {made[page] if made[page].exists() else page: dpis[page] for page in dpis}
                save(Picture(bytes=_pack(found), format="pdf"), target)
                terminal.result(f"{target}: {len(dpis)} page{'s' if len(dpis) > 1 else ''}")
    return done


def _is_pdf(text: str | Path) -> bool:
    """Whether a file is a document by its name."""
    return Path(text).suffix.lower() == ".pdf"


def _check_options(client: Client, options: argparse.Namespace) -> None:
    """Raise StartupError for a format of images, and for a model whose images have one size: pages
    would lose theirs.
    """
    if options.format:
        raise StartupError(f"--format {options.format}: PDF files become PDF files; leave it out")
    models = client.models()
    tiled = {card.name: card for card in models if card.document.get("tiles") is not None}
    for card in models:
        if (options.model or models.default) in (card.ref, card.name) and card.name not in tiled:
            _, height, width = card.shape
            raise StartupError(
                f"{card.ref} makes every page {width}×{height} pixels; name a model of any size, "
                f"as in --model {' or '.join(tiled) or 'NAME'}"
            )


def _unpack(document: Path, folder: Path) -> dict[Path, float]:
    """Write each page as a PNG file; returns the files and their resolutions, those of the finest
    pictures.
    """
    pdfium = _pdfium()
    dpis = {}
    characters = 0
    try:
        with pdfium.PdfDocument(require_file(document)) as pdf:
            folder.mkdir()
            for number, page in enumerate(pdf, 1):
                dpi = _resolution(pdfium, page)
                file = folder / f"{number:04}.png"
                # It rounds the size up: by a pixel, where that of a scan is whole but for an error.
                scale = dpi / POINTS_PER_INCH * (1 - 1e-6)
                page.render(scale=scale).to_pil().save(file, compress_level=1)
                dpis[file] = dpi
                characters += page.get_textpage().count_chars()
    except pdfium.PdfiumError as exc:
        raise StartupError(f"{document} is no PDF that can be read: {exc}") from None
    if characters:
        click.echo(f"{document}: the result has no text layer; ocrmypdf adds one", err=True)
    return dpis


def _resolution(pdfium: Any, page: Any) -> float:
    """Dots per inch of the finest picture of a page, 150 to 400; 300 of one without pictures."""
    found = []
    for picture in page.get_objects(filter=[pdfium.raw.FPDF_PAGEOBJ_IMAGE], max_depth=3):
        left, _, right, _ = picture.get_bounds()
        if right - left > page.get_width() / 2:  # a scan, and no logo
            found.append(picture.get_px_size()[0] * POINTS_PER_INCH / (right - left))
    return min(max(*found, 150), 400) if found else 300


def _pack(images: Mapping[Path, float]) -> bytes:
    """Images, with their resolutions, as the pages of a document."""
    pdfium = _pdfium()
    whole = io.BytesIO()
    with pdfium.PdfDocument.new() as pdf:
        for path, dpi in images.items():
            file = io.BytesIO()
            with Image.open(path) as image:
                image.save(file, "JPEG", quality=90)
                size = [side * POINTS_PER_INCH / dpi for side in image.size]
            picture = pdfium.PdfImage.new(pdf)
            picture.load_jpeg(file, inline=True)
            picture.set_matrix(pdfium.PdfMatrix().scale(*size))
            page = pdf.new_page(*size)
            page.insert_obj(picture)
            page.gen_content()
        pdf.save(whole)
    return whole.getvalue()


def _pdfium() -> Any:
    try:
        import pypdfium2
    except ImportError:
        raise StartupError("PDF files need the extra `pdf`: pip install pypdfium2") from None
    return pypdfium2
