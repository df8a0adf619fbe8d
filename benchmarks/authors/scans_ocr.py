"""What tesseract reads from damaged pages: as they are, cleaned by classical methods, and cleaned
by `scans`.

    python -m benchmarks.authors.scans_ocr --results benchmarks/results/scans-ocr.json

It needs Debian's `tesseract-ocr` and `debian-handbook`, fonts of the families `HELD_OUT_FONTS`, and
OpenCV; unpaper, DoxaPy's Sauvola and damages of Augraphy are measured where they are installed.
`--card` writes the figures into the card, `--sheet` a WebP of a block: damaged, background, f.
"""

import argparse
import shutil
import sys
import timeit
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.authors.scans_blocks import GROUPS, HANDBOOK, SEEN, block, conditions, faces
from benchmarks.authors.scans_methods import (
    Method,
    error_rate,
    methods_of,
    prepared,
    read,
    restored,
)
from benchmarks.harness.common import Json, newest, run_benchmark
from model_export.data.pages import HELD_OUT_PICTURES, read_photograph
from model_export.export.artifact import Artifact, publish, read_all, with_fields
from model_export.files import atomic_write
from service.artifact.pixels import Levels

METHOD: Final = (
    "Blocks of text in fonts and words that training never shows are damaged, cleaned by every "
    "method, and read by tesseract. cer: character error rate in per cent by damage, means: of "
    "groups of damages; worse: blocks that are read worse than raw by more than one point, in per "
    "cent; pixels: those that f, and one more f, change by more than 8 levels, in per cent; "
    "photographs: levels by which they change on a page, on average; page_s: seconds for an A4 "
    "page at 300 dpi on all cores"
)


def measure_block(number: int, methods: Mapping[str, Method]) -> dict[str, Json]:
    """Clean and read one block under every condition: condition → `cer`, which has the error rate
    of every method, and the pixels that f and one more f change.
    """
    sample = block(number)
    result = {}
    for condition, scan in conditions(number, sample):
        image, dpi = prepared(scan, sample.dpi)
        done = {name: method(image, dpi) for name, method in methods.items()}
        texts = read(done)
        result[condition] = {
            "cer": {name: error_rate(text, sample.text) for name, text in texts.items()},
            "changed": _differ(image, done["f"]),
            "moved": _differ(done["f"], done["f2"]),
        }
    return result


def _differ(a: Levels, b: Levels) -> float:
    return float((np.abs(a.astype(int) - b) > 8).mean())


def sheet(methods: Mapping[str, Method]) -> Levels:
    """A part of a block with each strong damage of training: as it is, and cleaned by `background`
    and f.
    """
    sample = block(2)
    lines = []
    for name, scan in conditions(2, sample):
        if name in SEEN:
            image, dpi = prepared(scan, sample.dpi)
            row = [image, *(methods[each](image, dpi) for each in ("background", "f"))]
            lines.append(np.hstack([np.pad(each[60:180, 60:460], 2) for each in row]))
    return np.vstack(lines)


def photographs(artifact: Artifact) -> dict[str, float]:
    """Mean change in levels of held-out photographs on a white page of 150 dpi, enlarged as pages
    are.
    """
    changes = {}
    for name in HELD_OUT_PICTURES:
        picture = np.asarray(read_photograph(name).resize((400, 400)))
        page = np.pad(picture, 120, constant_values=255)
        inside = np.abs(restored(artifact, page).astype(int) - page)[120:-120, 120:-120]
        changes[Path(name).stem] = float(inside.mean())
    return changes


def page_seconds(folder: Path) -> float:
    """Seconds for an A4 page at 300 dpi on all cores, the best of three; without reading and
    writing its file.
    """
    artifact = Artifact.read(folder)
    page = np.tile(block(1).image, (16, 4))[:3508, :2480]
    return min(timeit.repeat(lambda: restored(artifact, page), number=1, repeat=3))


def summarise(measured: Sequence[Mapping[str, Json]]) -> Json:
    """Means by damage and group in per cent, and how many blocks are read worse than raw by over
    one point; ``measured`` has what `measure` says of each block.
    """
    kinds = list(measured[0])
    names = list(measured[0][kinds[0]]["cer"])
    # (damages, methods, blocks)
    errors = np.array(
        [[[100 * each[kind]["cer"][name] for each in measured] for name in names] for kind in kinds]
    )
    rivals = [i for i, name in enumerate(names) if name not in ("f", "f2")]
    worse = errors > errors[:, [names.index("raw")]] + 1.0

    def by_name(rates: NDArray[Any]) -> dict[str, float]:
        return dict(zip(names, rates.tolist(), strict=True))

    result: Json = {
        "blocks": len(measured),
        "cer": {kind: by_name(errors[i].mean(1)) for i, kind in enumerate(kinds)},
        "means": {},
        "best_of_each": {},
        "worse": {},
        "pixels": {},
    }
    for group, belongs in GROUPS.items():
        members = [i for i, kind in enumerate(kinds) if belongs(kind)]
        if members:
            result["means"][group] = by_name(errors[members].mean((0, 2)))
            result["best_of_each"][group] = errors[members][:, rivals].mean(2).min(1).mean().item()
            result["worse"][group] = by_name(100 * worse[members].mean((0, 2)))
            result["pixels"][group] = {
                key: 100 * np.mean([each[kinds[i]][key] for i in members for each in measured])
                for key in ("changed", "moved")
            }
    return result


def missing(artifact: Path) -> str:
    """Why nothing can be measured; empty if everything is there."""
    needs = {
        "tesseract of Debian's tesseract-ocr": shutil.which("tesseract") is not None,
        "OpenCV, pip install opencv-python-headless": find_spec("cv2") is not None,
        f"{HANDBOOK} of Debian's debian-handbook": HANDBOOK.is_dir(),
        "fonts of the held-out families, see docs/training.md": bool(faces()),
        f"a model in {artifact}": artifact.is_dir(),
    }
    return ", ".join(name for name, found in needs.items() if not found)


def measure(options: argparse.Namespace) -> Json:
    folder = Path(options.model)
    if reason := missing(folder):
        raise OSError(f"needs {reason}")
    artifact = Artifact.read(folder, threads=1)
    methods = methods_of(artifact)
    blocks = [measure_block(number, methods) for number in tqdm(range(options.blocks))]
    result = summarise(blocks) | {
        "photographs": photographs(artifact),
        "page_s": page_seconds(folder),
    }
    if options.sheet:
        with atomic_write(Path(options.sheet)) as file:
            Image.fromarray(sheet(methods)).save(file, "WEBP", quality=70)
    if options.card:
        files = with_fields(read_all(folder, threads=1), quality={"ocr": result})
        publish(folder, files, keep=True)
    return result


NEWEST: Final = newest("scans")
OPTIONS: Final = {
    "model": str(NEWEST),
    "blocks": 16,
    "sheet": "",
    "card": False,
}

if __name__ == "__main__":
    sys.exit(run_benchmark("scans", METHOD, measure, OPTIONS))
