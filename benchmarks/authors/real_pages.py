"""Real pages, which training never shows, cleaned by `scans` and by classical methods.

    python -m benchmarks.authors.real_pages --sets pages/noisyoffice pages/dibco2009

A set is a folder of pictures, NAME.png, each with its truth: the text as NAME.txt, or the clean
page as NAME.clean.png. The program comes with no set: their licences are their own.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from skimage.filters import threshold_otsu
from tqdm import tqdm

from benchmarks.authors.scans_methods import Method, error_rate, methods_of, prepared, read
from benchmarks.harness.common import Json, newest, run_benchmark
from model_export.export.artifact import Artifact
from service.artifact.pixels import Levels

METHOD: Final = (
    "Means over the pages of a set, in per cent. cer: character error rate of tesseract, worse: "
    "pages that are read worse than raw by more than one point; rms: root of the mean square "
    "difference from the clean page, of the range of levels; f_measure: of ink, after Otsu's "
    "threshold"
)


def page(path: Path) -> Levels:
    return np.asarray(Image.open(path).convert("L"))


def f_measure(image: Levels, truth: Levels) -> float:
    """2·|a ∩ b| / (|a| + |b|) of the ink of a picture, by Otsu's threshold, and of the truth."""
    ink = image <= threshold_otsu(image)
    wanted = truth < 128
    return 2 * float((ink * wanted).sum() / (ink.sum() + wanted.sum()))


def judged(path: Path, methods: Mapping[str, Method], dpi: int) -> dict[str, list[float]]:
    """Name of a measure → its values, in the order of the methods, of which raw is the first."""
    text = path.with_suffix(".txt")
    image = page(path)
    if text.exists():
        image, dpi = prepared(image, dpi)
    images = {name: method(image, dpi) for name, method in methods.items()}
    if text.exists():
        wanted = text.read_text("utf-8")
        errors = [error_rate(found, wanted) for found in read(images, layout=3).values()]
        return {"cer": errors, "worse": [error > errors[0] + 0.01 for error in errors]}
    truth = page(path.with_suffix(".clean.png"))
    return {
        "rms": [np.sqrt(np.square(each / 255 - truth / 255).mean()) for each in images.values()],
        "f_measure": [f_measure(each, truth) for each in images.values()],
    }


def measure(options: argparse.Namespace) -> Json:
    methods = methods_of(Artifact.read(Path(options.model), threads=1))
    sets: Json = {}
    for folder in map(Path, options.sets):
        paths = sorted({*folder.glob("*.png")} - {*folder.glob("*.clean.png")})
        if not paths:
            raise OSError(f"no picture .png in {folder}")
        pages = [judged(path, methods, options.dpi) for path in tqdm(paths, desc=folder.name)]
        sets[folder.name] = {"pages": len(pages)}
        for name in pages[0]:
            means = 100 * np.mean([each[name] for each in pages], 0)
            sets[folder.name][name] = dict(zip(methods, means.tolist(), strict=True))
    return {"sets": sets}


OPTIONS: Final = {"model": str(newest("scans")), "sets": [""], "dpi": 300}

if __name__ == "__main__":
    sys.exit(run_benchmark("real-pages", METHOD, measure, OPTIONS))
