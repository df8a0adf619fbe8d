"""OCR of cleaned pages: `ocrmypdf --plugin ocrmypdf_ign SCAN.pdf OUT.pdf`.

Only the picture that goes to OCR is cleaned; the pages of the PDF look as before. A page that
tesseract reads with more confidence as it is, is not cleaned.
"""

import atexit
import csv
import io
import logging
import os
import subprocess
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from ocrmypdf import hookimpl
from ocrmypdf.exceptions import BadArgsError
from PIL import Image
from pydantic import BaseModel, Field

from service.domain.errors import StartupError
from service.environment import prepare_process
from service.models.repository import Repository, repository_options
from service.settings import local_settings

if TYPE_CHECKING:
    from ign.local import LocalClient

log = logging.getLogger(__name__)

# Dots per inch: a page of less is enlarged to twice the size, of more reduced to half.
SMALL_PRINT = 200
LARGE_PRINT = 500
# A character that tesseract reads with less confidence, in per cent, counts against the page.
DOUBTFUL = 50
# A page has so many parts, one above the other, or less, so that a part has this height in inches.
# Of N parts, a band of 1/N of the height is read twice.
PARTS = 4
PART_HEIGHT = 2.5
# Where cleaning changes no hundredth of the height and width by more, in grey levels of 255, the
# page reads as before.
CHANGED = 4

# Models stay loaded until the process ends.
open_models = ExitStack()

# What fails is raised, and told by this module.
for name in ("asyncio", "service"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


class Options(BaseModel):
    """The options of this plugin, as `options.ign`."""

    model: Annotated[str, Field(description="A model for pictures of any size")] = "scans"
    always: Annotated[bool, Field(description="Use the cleaned page without comparing")] = False


@hookimpl
def add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("Cleaning", "Clean the pages that go to OCR by a network")
    group.add_argument(
        "--ign-model",
        metavar="NAME",
        default="scans",
        help="A model for pictures of any size: scans, or one of IGN_MODEL_DIR. (default: scans)",
    )
    group.add_argument(
        "--ign-always",
        action="store_true",
        help="Use the cleaned page, also where tesseract reads the raw one with more confidence.",
    )


@hookimpl
def register_options() -> dict[str, type[BaseModel]]:
    return {"ign": Options}


@hookimpl
def check_options(options: Any) -> None:
    """Refuse a model that is not there, or not for pages, before any page; none is loaded here."""
    # OCRmyPDF runs one job for each core, so each runs the network on one.
    os.environ.setdefault("IGN_THREADS", "1")
    model = options.ign.model
    try:
        prepare_process()
        found = repository_options(local_settings())
        repository = Repository(open_models=lambda _: [], only=model, **found)
        repository.refresh(may_fail=True)
        card = repository.card(repository.defaults(repository.find_all())[-1])
    except StartupError as exc:
        raise BadArgsError(f"--ign-model: {exc.detail}") from exc
    if card.tiles is None:
        _, height, width = card.shape
        raise BadArgsError(f"--ign-model: {model} makes pictures of {width}×{height}, not pages")


@hookimpl
def filter_ocr_image(page: Any, image: Image.Image) -> Image.Image | None:
    """The cleaned page, or None, with which OCRmyPDF goes on with the page as it is."""
    options: Options = page.options.ign
    try:
        cleaned = clean(image, options.model)
        better = options.always or reads_better(cleaned, image, page.options.languages)
    except Exception as exc:
        # Whatever fails here, the document is more important than the cleaning of one page.
        log.warning("the page is read as it is, not cleaned: %s", exc)
        return None
    log.info("tesseract reads the page %s", "cleaned" if better else "as it is")
    return cleaned if better else None


def clean(image: Image.Image, model: str) -> Image.Image:
    """What the model makes of a page, in a size that suits it, with the resolution of that size.

    Raises what loading and running the model raise.
    """
    dpi = [float(each) for each in image.info.get("dpi", (300, 300))]
    factor = 2 if min(dpi) < SMALL_PRINT else 0.5 if min(dpi) > LARGE_PRINT else 1
    size = (round(factor * image.width), round(factor * image.height))
    scan = image.convert("L").resize(size, Image.Resampling.BICUBIC)
    (picture,) = network(model).project([png(scan)], model=model, format="png")
    result = picture.to_pil()
    result.info["dpi"] = tuple(factor * each for each in dpi)
    return result


@cache
def network(model: str) -> "LocalClient":
    """The model in this process, which threads share."""
    # Imports onnxruntime, for which `check_options` prepares the process and its children.
    from ign.local import local_client

    return open_models.enter_context(local_client(model))


@atexit.register
def close_models() -> None:
    # The event loop ends; its threads, in which it would close a model, have ended before.
    with suppress(RuntimeError):
        open_models.close()


def reads_better(cleaned: Image.Image, image: Image.Image, languages: Sequence[str]) -> bool:
    """Whether tesseract reads more of a page with confidence after cleaning."""
    before, after = (
        np.asarray(each.convert("L").resize((100, 100), Image.Resampling.BOX), np.float32)
        for each in (image, cleaned)
    )
    if cleaned.size == image.size and np.abs(after - before).max() < CHANGED:
        return False
    return confidence(cleaned, languages) > confidence(image, languages)


def confidence(image: Image.Image, languages: Sequence[str]) -> float:
    """How much of a part of a page tesseract reads with confidence: the sum over its characters of
    what it gives their word, in per cent, above `DOUBTFUL`.
    """
    # Bands from all over the page, as wide as it is, so that no corner is left out: what hides
    # text, to tesseract, is the difference of light between one place and another. A mean would
    # prefer a page of which one clear word is left.
    inches = image.height / image.info.get("dpi", (300, 300))[1]
    parts = min(max(int(inches / PART_HEIGHT), 1), PARTS)
    band = image.height // parts**2
    strip = Image.new(image.mode, (image.width, parts * band))
    for i in range(parts):
        top = (image.height * (2 * i + 1) // parts - band) // 2
        strip.paste(image.crop((0, top, image.width, top + band)), (0, i * band))
    strip.info = image.info
    command = ["tesseract", "stdin", "stdout", "-l", "+".join(languages), "tsv"]
    # On more threads it waits for them, with as many seconds of each core.
    one_thread = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    table = subprocess.run(
        command, input=png(strip), capture_output=True, check=True, env=one_thread
    ).stdout
    words = csv.DictReader(table.decode().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return sum(
        (float(word["conf"]) - DOUBTFUL) * len((word["text"] or "").strip())
        for word in words
        if float(word["conf"]) >= 0
    )


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    # Fast, for the file goes to a program and is read once.
    image.save(file, "PNG", dpi=image.info.get("dpi", (300, 300)), compress_level=1)
    return file.getvalue()
