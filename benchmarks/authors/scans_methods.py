"""The methods that clean a page, what tesseract then reads, and how much of it is wrong."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from model_export.data.pages import enlarged, to_levels
from model_export.export.artifact import Artifact
from service.artifact.pixels import Levels, to_rows
from service.artifact.pixels import to_levels as rows_to_levels

SMALL_PRINT: Final = 200  # dpi: pages of less are enlarged twice, for every method
SAUVOLA: Final = {"window": 25, "k": 0.2}  # the least error on damages and fonts of training
TESS_SAUVOLA: Final = "tess-sauvola"  # tesseract's own threshold
_PAGE_PARTS: Final = ("mask-scan", "mask-center", "border-scan", "border-align", "deskew")

Method = Callable[[Levels, int], Levels]


def background(image: Levels, dpi: int) -> Levels:
    """Divide by the paper: closing and blur, then stretch. What answers on the web recommend."""
    import cv2

    size = max(7, dpi // 8) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    ground = cv2.GaussianBlur(cv2.morphologyEx(image, cv2.MORPH_CLOSE, kernel), (0, 0), size / 2)
    divided = image / np.maximum(ground, 1).astype(np.float32)
    low = np.percentile(divided, 1)
    return to_levels((divided - low) / max(0.05, 1 - low))


def classic(image: Levels, dpi: int) -> Levels:
    """Non-local means at the noise that is estimated (Immerkær, with a median), then
    `background`.
    """
    import cv2

    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    sigma = float(
        np.median(np.abs(cv2.filter2D(image.astype(np.float32), -1, kernel))) / 0.6745 / 6
    )
    return background(cv2.fastNlMeansDenoising(image, None, sigma + 1, 5, 15), dpi)


def sauvola(image: Levels, dpi: int) -> Levels:
    """DoxaPy's Sauvola; the window is for 150 dpi."""
    from doxapy import Binarization

    out = np.empty_like(image)
    method = Binarization(Binarization.Algorithms.SAUVOLA)
    method.initialize(np.ascontiguousarray(image))
    method.to_binary(out, {"window": SAUVOLA["window"] * dpi // 150, "k": SAUVOLA["k"]})
    return out


def unpaper(image: Levels, dpi: int) -> Levels:
    """unpaper, without what cuts blocks off."""
    options = [f"--no-{part}" for part in _PAGE_PARTS]
    return _by_command(["unpaper", "--dpi", str(dpi), *options], image)


def lat(image: Levels, dpi: int) -> Levels:
    """ImageMagick's local adaptive threshold: ink is 10 % darker than the mean of a sixth of an
    inch.
    """
    side = dpi // 6
    return _by_command(["magick", "-negate", "-lat", f"{side}x{side}+10%", "-negate"], image)


def _by_command(command: list[str], image: Levels) -> Levels:
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder, "scan.pgm")
        clean = Path(folder, "clean.pgm")
        Image.fromarray(image).save(scan)
        program, *options = command
        files = [str(scan), *options] if program == "magick" else [*options, str(scan)]
        subprocess.run([program, *files, str(clean)], check=True, capture_output=True)
        with Image.open(clean) as cleaned:
            return np.asarray(cleaned.convert("L"))


def restored(artifact: Artifact, image: Levels) -> Levels:
    """f of a picture of any size, in tiles as the service cuts them; rounded to 8 bits, as in a
    file.
    """
    row = to_rows(image[None, None])[0]
    tiling = artifact.card.tiling(image.shape)
    canvas = np.zeros_like(row)
    tile = np.empty((1, 1, *tiling.tile), np.float32)
    for index in range(tiling.count):
        tiling.cut(row, index, tile[0])
        tiling.paste(artifact.function(tile)[0], index, canvas)
    return rows_to_levels(canvas[None])[0, 0]


def methods_of(artifact: Artifact) -> dict[str, Method]:
    """Name → method, of those that are installed."""
    methods: dict[str, Method] = {
        "raw": lambda image, _: image,
        "background": background,
        "classic": classic,
        "f": lambda image, _: restored(artifact, image),
        "f2": lambda image, _: restored(artifact, restored(artifact, image)),
        TESS_SAUVOLA: lambda image, _: image,
    }
    if find_spec("doxapy"):
        methods["sauvola"] = sauvola
    programs = {"unpaper": unpaper, "magick": lat}
    return methods | {each: programs[each] for each in programs if shutil.which(each)}


def read(images: Mapping[str, Levels], layout: int = 6) -> dict[str, str]:
    """What tesseract reads from pictures of 300 dpi, by the method that made them; ``layout`` is
    its --psm, 6 for one block.
    """
    texts = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, image in images.items():
            file = Path(folder, "page.png")
            Image.fromarray(image).save(file, dpi=(300, 300), compress_level=1)
            command = ["tesseract", str(file), "-", "--psm", str(layout), "-l", "eng"]
            if name == TESS_SAUVOLA:
                command += ["-c", "thresholding_method=2"]
            environ = {**os.environ, "OMP_THREAD_LIMIT": "1"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environ)
            texts[name] = done.stdout
    return texts


def error_rate(found: str, wanted: str) -> float:
    """Edit distance in characters over the length of the text, at most 1."""
    a, b = (
        " ".join(text.translate(str.maketrans("’‘“”—", "''\"\"-")).split())
        for text in (found, wanted)
    )
    row = np.arange(len(b) + 1)
    letters = np.array([*b])
    places = np.arange(len(b) + 1)
    for i, letter in enumerate(a, start=1):
        best = np.concatenate([[i], np.minimum(row[1:] + 1, row[:-1] + (letters != letter))])
        row = np.minimum.accumulate(best - places) + places
    return min(1.0, float(row[-1]) / len(b))


def prepared(image: Levels, dpi: int) -> tuple[Levels, int]:
    """Small print twice as large, and its dpi."""
    return (image, dpi) if dpi >= SMALL_PRINT else (enlarged(image), 2 * dpi)
