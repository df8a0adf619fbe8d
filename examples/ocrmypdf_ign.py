"""OCR of cleaned pages: `ocrmypdf --plugin examples/ocrmypdf_ign.py SCAN.pdf OUT.pdf`, beside `ign
serve`.

Only the picture that goes to OCR is cleaned; the pages of the PDF look as before. A page that
tesseract reads with more confidence as it is, is not cleaned.
"""

import csv
import io
import subprocess
from typing import Any

from ocrmypdf import hookimpl
from PIL import Image

from ign_client import Client

# dpi; pages of less are enlarged to twice the size, of more reduced to half
SMALL_PRINT, LARGE_PRINT = (200, 500)
# A character that tesseract reads with less confidence, in per cent, counts against the page.
DOUBTFUL = 50


@hookimpl
def filter_ocr_image(page: Any, image: Image.Image) -> Image.Image:
    dpi = [float(each) for each in image.info.get("dpi", (300, 300))]
    factor = 2 if min(dpi) < SMALL_PRINT else 0.5 if min(dpi) > LARGE_PRINT else 1
    size = (round(factor * image.width), round(factor * image.height))
    scan = image.convert("L").resize(size, Image.Resampling.BICUBIC)
    scan.info["dpi"] = tuple(factor * each for each in dpi)
    with Client(timeout=120) as client:
        (cleaned,) = client.project(png(scan), model="scans")
    result = cleaned.to_pil()
    if result.size != size:
        raise ValueError(f"{client.base_url}: its model `scans` is not for pages of any size")
    result.info["dpi"] = scan.info["dpi"]
    languages = page.options.languages
    return result if confidence(result, languages) > confidence(scan, languages) else image


def confidence(image: Image.Image, languages: list[str]) -> float:
    """How much of a page tesseract reads with confidence: the sum over its characters of what it
    gives their word, in per cent, above `DOUBTFUL`.
    """
    # A mean would prefer a page of which nothing but one clear word is left.
    command = ["tesseract", "stdin", "stdout", "-l", "+".join(languages), "tsv"]
    table = subprocess.run(command, input=png(image), capture_output=True, check=True).stdout
    words = csv.DictReader(table.decode().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return sum(
        (float(word["conf"]) - DOUBTFUL) * len((word["text"] or "").strip())
        for word in words
        if float(word["conf"]) >= 0
    )


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", dpi=image.info["dpi"])
    return file.getvalue()
