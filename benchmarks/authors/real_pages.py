"""Real pages, which training never shows, cleaned by `scans` and by classical methods.

    python -m benchmarks.authors.real_pages --sets pages/noisyoffice pages/dibco2009

A set is a folder of pictures, NAME.png, each with its truth: the text as NAME.txt, or the clean
page as NAME.clean.png. The program comes with no set: their licences are their own.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
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
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def ink(image: Levels) -> Levels:
    """Otsu's threshold: 1 is ink."""
    import cv2

    return cv2.threshold(image, 0, 1, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)[1]


def measures(path: Path, methods: Mapping[str, Method], dpi: int) -> Iterator[tuple[str, Json]]:
    """Name of a measure → its value for each method."""
    text = path.with_suffix(".txt")
    if text.exists():
        image, dpi = prepared(page(path), dpi)
        texts = read({name: method(image, dpi) for name, method in methods.items()}, 3)
        wanted = text.read_text("utf-8")
        errors = {name: 100 * error_rate(found, wanted) for name, found in texts.items()}
        yield "cer", errors
        yield "worse", {name: 100.0 * (e > errors["raw"] + 1) for name, e in errors.items()}
        return
    truth = page(path.with_suffix(".clean.png"))
    done = {name: method(page(path), dpi) for name, method in methods.items()}
    away = {name: (image.astype(float) - truth) / 255 for name, image in done.items()}
    yield "rms", {name: 100 * np.sqrt((each**2).mean()) for name, each in away.items()}
    # 2·|a ∩ b| / (|a| + |b|) of 0 and 1
    black = truth < 128
    yield (
        "f_measure",
        {
            name: 200 * (ink(a) * black).sum() / (ink(a).sum() + black.sum())
            for name, a in done.items()
        },
    )


def measure(options: argparse.Namespace) -> Json:
    methods = methods_of(Artifact.read(Path(options.model), threads=1))
    result: Json = {}
    for folder in map(Path, options.sets):
        paths = [path for path in sorted(folder.glob("*.png")) if ".clean" not in path.suffixes]
        if not paths:
            raise OSError(f"no picture .png in {folder}")
        values = defaultdict(list)
        for path in tqdm(paths, desc=folder.name):
            for name, value in measures(path, methods, options.dpi):
                values[name].append(value)
        result[folder.name] = {"pages": len(paths)} | {
            name: {method: float(np.mean([each[method] for each in rows])) for method in rows[0]}
            for name, rows in values.items()
        }
    return {"sets": result}


OPTIONS: Final = {"model": str(newest("scans")), "sets": [""], "dpi": 300}

if __name__ == "__main__":
    sys.exit(run_benchmark("real-pages", METHOD, measure, OPTIONS))
