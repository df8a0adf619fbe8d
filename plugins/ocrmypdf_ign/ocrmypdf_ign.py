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
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from ocrmypdf import hookimpl
from PIL import Image
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from ign.local import LocalClient

log = logging.getLogger(__name__)

# Dots per inch: a page of less is enlarged to twice the size, of more reduced to half.
SMALL_PRINT = 200
LARGE_PRINT = 500
# A character that tesseract reads with less confidence, in per cent, counts against the page.
DOUBTFUL = 50
# The part of a page that is read twice, and where it begins: shares of the height.
STRIP = 0.25
STRIP_TOP = 0.3

# Models stay loaded until the process ends.
open_models = ExitStack()
atexit.register(open_models.close)


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
def filter_ocr_image(page: Any, image: Image.Image) -> Image.Image | None:
    """The cleaned page, or None, with which OCRmyPDF goes on with the page as it is."""
    options: Options = page.options.ign
    try:
        cleaned = clean(image, options.model)
    except Exception as exc:
        # Whatever fails here, the document is more important than the cleaning of one page.
        log.warning("page %s is not cleaned: %s", page.pageno + 1, exc)
        return None
    if options.always:
        return cleaned
    languages = page.options.languages
    better = confidence(cleaned, languages) > confidence(image, languages)
    return cleaned if better else None


def clean(image: Image.Image, model: str) -> Image.Image:
    """What the model makes of a page, in a size that suits it, with the resolution of that size.

    Raises what loading and running the model raise, and ValueError for a model of one size.
    """
    dpi = [float(each) for each in image.info.get("dpi", (300, 300))]
    factor = 2 if min(dpi) < SMALL_PRINT else 0.5 if min(dpi) > LARGE_PRINT else 1
    size = (round(factor * image.width), round(factor * image.height))
    scan = image.convert("L").resize(size, Image.Resampling.BICUBIC)
    (picture,) = network(model).project([png(scan)], model=model, format="png")
    result = picture.to_pil()
    if result.size != size:
        raise ValueError(f"the model {model} is not for pictures of any size")
    result.info["dpi"] = tuple(factor * each for each in dpi)
    return result


@cache
def network(model: str) -> "LocalClient":
    """The model in this process, which threads share."""
    # OCRmyPDF runs one job for each core, so each runs the network on one.
    os.environ.setdefault("IGN_THREADS", "1")
    from service.environment import prepare_process

    logging.getLogger("service").setLevel(logging.WARNING)
    prepare_process()  # before the module below, which imports onnxruntime
    from ign.local import local_client

    return open_models.enter_context(local_client(model))


def confidence(image: Image.Image, languages: Sequence[str]) -> float:
    """How much of a strip of a page tesseract reads with confidence: the sum over its characters of
    what it gives their word, in per cent, above `DOUBTFUL`.
    """
    # A mean would prefer a page of which nothing but one clear word is left.
    top = round(STRIP_TOP * image.height)
    strip = image.crop((0, top, image.width, top + round(STRIP * image.height)))
    command = ["tesseract", "stdin", "stdout", "-l", "+".join(languages), "tsv"]
    table = subprocess.run(command, input=png(strip), capture_output=True, check=True).stdout
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
