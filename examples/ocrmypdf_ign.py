"""OCR of cleaned pages: `ocrmypdf --plugin examples/ocrmypdf_ign.py SCAN.pdf OUT.pdf`, beside `ign
serve`.

Only the picture that goes to OCR is cleaned; the pages of the PDF look as before.
"""

import io

from ocrmypdf import hookimpl
from PIL import Image

from ign_client import Client

# dpi; pages of less are enlarged to twice the size, of more reduced to half
SMALL_PRINT, LARGE_PRINT = (200, 500)


@hookimpl
def filter_ocr_image(page: object, image: Image.Image) -> Image.Image:
    dpi = [float(each) for each in image.info.get("dpi", (300, 300))]
    factor = 2 if min(dpi) < SMALL_PRINT else 0.5 if min(dpi) > LARGE_PRINT else 1
    size = (round(factor * image.width), round(factor * image.height))
    scan = io.BytesIO()
    image.convert("L").resize(size, Image.Resampling.BICUBIC).save(scan, "PNG")
    with Client(timeout=120) as client:
        (cleaned,) = client.project(scan.getvalue(), model="scans")
    result = cleaned.to_pil()
    if result.size != size:
        raise ValueError(f"{client.base_url}: its model `scans` is not for pages of any size")
    result.info["dpi"] = tuple(factor * each for each in dpi)
    return result
