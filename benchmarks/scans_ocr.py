"""What tesseract reads from damaged pages: as they are, cleaned by classical methods, and cleaned
by `scans`.

    python -m benchmarks.scans_ocr --pages 2 --out benchmarks/results/scans-ocr.json
    python -m benchmarks.scans_ocr --real FOLDER

Blocks of text in fonts and words that training never shows are damaged, cleaned by every method,
and read; so are whole A4 pages, of which tesseract finds the layout, and unpaper the borders,
itself. It needs Debian's `tesseract-ocr` and `debian-handbook`, fonts of the families
`HELD_OUT_FONTS`, and OpenCV; unpaper, DoxaPy's Sauvola and damages of Augraphy are measured where
they are installed. `--card` writes the figures into the card. `--real` reads pictures of a folder
instead, each with its text beside it, `page.png` and `page.txt`.
"""

import argparse
import html
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage import __file__ as skimage_file
from tqdm import tqdm

from benchmarks.harness.tables import table
from model_export.data import damages
from model_export.data.pages import (
    HELD_OUT_PICTURES,
    FloatImage,
    enlarged,
    font_files,
    load_font,
    noise_field,
    to_levels,
    wrap,
)
from model_export.errors import UserError
from model_export.export.artifact import Artifact, TrainedCard, publish, read_all, with_card
from model_export.files import atomic_write
from service.artifact.golden import digest_of
from service.artifact.pixels import Levels, to_rows
from service.artifact.pixels import to_levels as rows_to_levels
from service.environment import available_cpus

_FIRST_PAGE: Final = 1000  # blocks with this number or a higher one are whole pages
HANDBOOK: Final = Path(os.environ.get("SCANS_TEXT", "/usr/share/doc/debian-handbook/html/en-US"))
SMALL_PRINT: Final = 200  # dpi: pages of less are enlarged twice, for every method
SEEN: Final[Mapping[str, tuple[damages.Damage, ...]]] = {
    # The first is the one under test; the others are weak.
    "light": (damages.light, damages.paper, damages.noise),
    "bleed": (damages.bleed, damages.paper, damages.noise),
    "blur": (damages.blur, damages.noise),
    "noise": (damages.noise,),
    "low resolution": (damages.low, damages.jpeg),
    "stain and fold": (damages.stain, damages.fold, damages.paper, damages.noise),
    "fade": (damages.fade, damages.paper, damages.noise),
    "specks": (damages.specks, damages.blur),
    "dirt": (damages.dirt, damages.streaks, damages.paper),
    "ruled": (damages.ruled, damages.paper, damages.noise),
    "halftone": (damages.halftone, damages.noise),
}
_PATTERNS: Final = ("dirt", "ruled", "halftone")  # which no method without training removes
GROUPS: Final[Mapping[str, Callable[[str], bool]]] = {
    "clean": lambda name: name == "clean",
    "seen": lambda name: name in SEEN and name not in _PATTERNS,
    "seen, dirt and patterns": lambda name: name in _PATTERNS,
    "unseen": lambda name: name.startswith("new"),
    "unseen, Augraphy": lambda name: name.startswith("augraphy"),
}
AUGRAPHY: Final = ("InkBleed", "BadPhotoCopy", "DirtyDrum", "ShadowCast", "Faxify")


def moire(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Waves of a screen that was photographed."""
    rows, columns = np.indices(image.shape)
    angle = g.uniform(0, np.pi)
    pitch = em / g.uniform(3, 8)
    waves = np.sin(2 * np.pi * (columns * np.cos(angle) + rows * np.sin(angle)) / pitch)
    return np.asarray(image * (0.85 - 0.2 * strength) + (0.06 + 0.1 * strength) * waves)


def ink_spread(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """Too much ink on wet paper."""
    cv2 = import_module("cv2")
    size = max(2, round(em * (0.04 + 0.03 * strength)))
    thick = cv2.erode(image.astype(np.float32), np.ones((size, size), np.uint8))
    near = cv2.GaussianBlur(1 - thick, (0, 0), em / 20) > 0.05
    thick = np.clip(thick + 0.25 * noise_field(g, image.shape, max(1, em / 15)) * near, 0, 1)
    return np.asarray(cv2.GaussianBlur(thick.astype(np.float32), (0, 0), em / 40) * 0.92)


def marker(g: Generator, image: FloatImage, strength: float, em: float) -> FloatImage:
    """A text marker over some lines."""
    out = image.copy()
    for top in np.arange(g.uniform(0, 2) * em, image.shape[0], g.uniform(1.5, 4) * em):
        left, right = np.sort(g.uniform(0, image.shape[1], 2)).astype(int)
        out[int(top) : int(top + em), left:right] *= g.uniform(0.75, 0.9) - 0.3 * strength
    return out


UNSEEN: Final[Mapping[str, damages.Damage]] = {
    "new: moire": moire,
    "new: ink spread": ink_spread,
    "new: marker": marker,
}


class Block(NamedTuple):
    """Lines of held-out text in a held-out font, as after a perfect scan."""

    image: Levels
    text: str
    dpi: int
    em: float
    hard: bool


@cache
def words() -> list[str]:
    """Prose of Debian's handbook in plain letters."""
    pages = "".join(file.read_text("utf-8") for file in sorted(HANDBOOK.glob("sect.*.html")))
    paragraphs = re.findall(r'<div class="para">(.*?)</div>', pages, re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]+>", "", " ".join(paragraphs)))
    return [word for word in text.split() if re.fullmatch(r"[A-Za-z0-9,.;:!?'()-]{1,18}", word)]


@cache
def faces(*, held_out: bool) -> tuple[Path, ...]:
    return font_files(held_out=held_out)


def block(number: int, *, held_out: bool = True) -> Block:
    """Blocks alternate between 150 and 300 dpi, and pairs of them between weak and strong
    damages.
    """
    lines, inches, margin = (44, 6.9, 0.68) if number >= _FIRST_PAGE else (4, 3.7, 0.22)
    g = np.random.default_rng((90, number, held_out))
    dpi = 300 if number % 2 else 150
    em = g.uniform(8.5, 12) * dpi / 72
    font = load_font(
        faces(held_out=held_out)[int(g.integers(len(faces(held_out=held_out))))], round(em)
    )
    start = int(g.integers(len(words()) - 400))
    width = int(inches * dpi)
    pad = int(margin * dpi)
    rows = wrap(font, " ".join(words()[start : start + 50 * lines]), width)[:lines]
    pitch = em * g.uniform(1.15, 1.4)
    image = Image.new("L", (width + 2 * pad, int(pitch * lines + em * 0.3) + 2 * pad), 255)
    for i, row in enumerate(rows):
        ImageDraw.Draw(image).text((pad, pad + i * pitch), row, font=font, fill=0)
    return Block(np.asarray(image), "\n".join(rows), dpi, em, number % 4 > 1)


def conditions(number: int, sample: Block) -> Iterator[tuple[str, Levels]]:
    """A block without damage, and with every damage. Block and damage have the same random numbers
    in every run.
    """
    clean = sample.image.astype(np.float32) / 255
    strength = 0.85 if sample.hard else 0.45
    yield "clean", sample.image
    for kind, (name, chain) in enumerate(SEEN.items()):
        g = np.random.default_rng((91, number, kind))
        image: FloatImage = clean
        # in the order in which they happen
        for damage in sorted(chain, key=list(damages.SHARES).index):
            image = damage(g, image, strength if damage is chain[0] else 0.25, sample.em)
        yield name, to_levels(image)
    for kind, (name, unseen) in enumerate(UNSEEN.items()):
        yield (
            name,
            to_levels(
                unseen(np.random.default_rng((92, number, kind)), clean, strength, sample.em)
            ),
        )
    for kind, name in enumerate(AUGRAPHY if find_spec("augraphy") else ()):
        yield f"augraphy: {name}", augraphy(name, sample.image, 1000 * number + kind)


def augraphy(name: str, image: Levels, seed: int) -> Levels:
    """A damage of the library Augraphy, whose random numbers are the global ones of `random` and
    numpy.
    """
    import_module("random").seed(seed)
    np.random.seed(seed % 2**32)
    damage = getattr(import_module("augraphy"), name)(p=1)
    out = damage(np.repeat(image[..., None], 3, 2))
    return np.asarray(
        Image.fromarray(np.asarray(out, np.uint8)).convert("L").resize(image.shape[::-1])
    )


# The methods: functions of picture and dpi.


def background(image: Levels, dpi: int) -> Levels:
    """Divide by the paper: closing and blur, then stretch. What answers on the web recommend."""
    cv2 = import_module("cv2")
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
    cv2 = import_module("cv2")
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    sigma = float(
        np.median(np.abs(cv2.filter2D(image.astype(np.float32), -1, kernel))) / 0.6745 / 6
    )
    return background(cv2.fastNlMeansDenoising(image, None, sigma + 1, 5, 15), dpi)


def sauvola(image: Levels, dpi: int, *, window: int, k: float) -> Levels:
    """DoxaPy's Sauvola; the window is for 150 dpi."""
    binarization = import_module("doxapy").Binarization
    out = np.empty_like(image)
    method = binarization(binarization.Algorithms.SAUVOLA)
    method.initialize(np.ascontiguousarray(image))
    method.to_binary(out, {"window": window * dpi // 150, "k": k})
    return out


def unpaper(image: Levels, dpi: int, *, left_out: Sequence[str] = ()) -> Levels:
    """unpaper, without these parts of it."""
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder, "scan.pgm")
        clean = Path(folder, "clean.pgm")
        Image.fromarray(image).save(scan)
        command = [
            "unpaper",
            "--dpi",
            str(dpi),
            *(f"--no-{part}" for part in left_out),
            str(scan),
            str(clean),
        ]
        subprocess.run(command, check=True, capture_output=True)
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
    levels: Levels = rows_to_levels(canvas[None])[0, 0]
    return levels


Method = Callable[[Levels, int], Levels]
# cut blocks off
_PAGE_PARTS: Final = ("mask-scan", "mask-center", "border-scan", "border-align", "deskew")
_OPTIONS: Final = {"tess-sauvola": ("-c", "thresholding_method=2")}


def methods_of(artifact: Artifact, setting: Mapping[str, Any] | None) -> dict[str, Method]:
    """Name → method; without a setting there is no Sauvola of DoxaPy."""
    methods: dict[str, Method] = {
        "raw": lambda image, _: image,
        "background": background,
        "classic": classic,
        "f": lambda image, _: restored(artifact, image),
        "f2": lambda image, _: restored(artifact, restored(artifact, image)),
        "tess-sauvola": lambda image, _: image,
    }
    if setting is not None:
        methods["sauvola"] = lambda image, dpi: sauvola(image, dpi, **setting)
    if shutil.which("unpaper"):
        methods["unpaper"] = partial(unpaper, left_out=_PAGE_PARTS)
    return methods


def read(images: Sequence[Levels], *, layout: str = "6", options: Sequence[str] = ()) -> list[str]:
    """What tesseract reads from pictures of 300 dpi; one process for all of them."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{i}.png") for i in range(len(images))]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image).save(file, dpi=(300, 300), compress_level=1)
        listed = Path(folder, "files.txt")
        listed.write_text("\n".join(map(str, files)))
        command = ["tesseract", str(listed), "-", "--psm", layout, "-l", "eng", *options]
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        )
    return done.stdout.split("\f")[: len(images)]


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


def tuned_sauvola(count: int = 6) -> dict[str, Any]:
    """Window and k with the least error on damages and fonts of training."""
    samples = [block(i, held_out=False) for i in range(count)]
    scans = [
        to_levels(
            damages.damaged(
                np.random.default_rng((93, i)), each.image.astype(np.float32) / 255, each.em
            )[0]
        )
        for i, each in enumerate(samples)
    ]
    settings = [{"window": window, "k": k} for window in (25, 51, 101) for k in (0.1, 0.2, 0.34)]

    def error(setting: Mapping[str, Any]) -> float:
        pages = [prepared(scan, each.dpi) for scan, each in zip(scans, samples, strict=True)]
        images = [sauvola(page, dpi, **setting) for page, dpi in pages]
        return sum(
            error_rate(text, each.text) for text, each in zip(read(images), samples, strict=True)
        )

    return min(settings, key=error)


def prepared(image: Levels, dpi: int) -> tuple[Levels, int]:
    """Small print twice as large, and its dpi."""
    return (image, dpi) if dpi >= SMALL_PRINT else (enlarged(image), 2 * dpi)


def measure(
    number: int, methods: Mapping[str, Method], known: Container[tuple[int, str, str]]
) -> Iterator[dict[str, Any]]:
    """Clean and read one block under every condition: a record for each picture and method that is
    not known.
    """
    sample = block(number)
    layout = "6"
    kinds = None
    if number >= _FIRST_PAGE:
        # no unseen damages, for the sake of time
        layout = "3"
        kinds = 1 + len(SEEN)
        methods = {
            name: unpaper if name == "unpaper" else method for name, method in methods.items()
        }
    for condition, scan in itertools.islice(conditions(number, sample), kinds):
        image, dpi = prepared(scan, sample.dpi)
        names = [name for name in methods if (number, condition, name) not in known]
        done = {name: methods[name](image, dpi) for name in names}
        changes: dict[str, Any] = {}
        if {"f", "f2"} <= done.keys():
            changes = {
                "changed": _differ(image, done["f"]),
                "moved": _differ(done["f"], done["f2"]),
            }
        for options, group in itertools.groupby(names, lambda name: _OPTIONS.get(name, ())):
            found = list(group)
            texts = read([done[each] for each in found], layout=layout, options=options)
            for name, text in zip(found, texts, strict=True):
                record = {"block": number, "condition": condition, "method": name}
                yield (
                    record
                    | {"cer": error_rate(text, sample.text)}
                    | (changes if name == "f" else {})
                )


def real_pages(folder: Path, methods: Mapping[str, Method]) -> dict[str, dict[str, float]]:
    """The error rates in per cent of a folder: page → method → rate, and their `mean`.

    Small print by the file's resolution, 300 dpi if it has none, is enlarged, as `prepared` does.
    """
    rates: dict[str, dict[str, float]] = {}
    for text in sorted(folder.glob("*.txt")):
        (file,) = (each for each in folder.glob(f"{text.stem}.*") if each != text)
        with Image.open(file) as picture:
            dpi = round(picture.info.get("dpi", (300, 300))[0])
            image, dpi = prepared(np.asarray(picture.convert("L")), dpi)
        found = {
            name: read([method(image, dpi)], layout="3", options=_OPTIONS.get(name, ()))[0]
            for name, method in methods.items()
        }
        rates[text.stem] = {
            name: 100 * error_rate(each, text.read_text("utf-8")) for name, each in found.items()
        }
    rates["mean"] = {
        name: float(np.mean([row[name] for row in rates.values()])) for name in methods
    }
    return rates


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


def _differ(a: Levels, b: Levels) -> float:
    return float((np.abs(a.astype(int) - b) > 8).mean())


def photographs(artifact: Artifact) -> dict[str, float]:
    """Mean change in levels of held-out photographs on a white page of 150 dpi, enlarged as pages
    are.
    """
    changes = {}
    for name in HELD_OUT_PICTURES:
        picture = (
            Image.open(Path(skimage_file).parent / "data" / name).convert("L").resize((400, 400))
        )
        page = np.pad(np.asarray(picture), 120, constant_values=255)
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


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means by damage and group in per cent, and how many blocks are read worse than raw by over
    one point.
    """
    names, kinds, blocks = (
        [*dict.fromkeys(each[key] for each in records)] for key in ("method", "condition", "block")
    )
    found = {(each["condition"], each["method"], each["block"]): each for each in records}
    errors = np.array(
        [[[100 * found[kind, name, i]["cer"] for i in blocks] for name in names] for kind in kinds]
    )
    groups = {
        group: [i for i, kind in enumerate(kinds) if belongs(kind)]
        for group, belongs in GROUPS.items()
    }
    groups = {group: members for group, members in groups.items() if members}
    rivals = [i for i, name in enumerate(names) if name not in ("f", "f2")]

    def by_name(rates: NDArray[Any]) -> dict[str, float]:
        return dict(zip(names, rates.tolist(), strict=True))

    worse = errors > errors[:, [names.index("raw")]] + 1.0
    return {
        "blocks": len(blocks),
        "cer": {kind: by_name(errors[i].mean(1)) for i, kind in enumerate(kinds)},
        "means": {
            group: by_name(errors[members].mean((0, 2))) for group, members in groups.items()
        },
        "best_of_each": {
            group: float(errors[members][:, rivals].mean(2).min(1).mean())
            for group, members in groups.items()
        },
        "worse": {
            group: by_name(100 * worse[members].mean((0, 2))) for group, members in groups.items()
        },
        "pixels": {
            group: {
                key: 100
                * float(np.mean([found[kinds[i], "f", n][key] for i in members for n in blocks]))
                for key in ("changed", "moved")
            }
            for group, members in groups.items()
        },
    }


def rates(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Error rates in per cent by damage and, as `mean …`, by group of them, for each method."""
    return {
        **summary["cer"],
        **{f"mean {name}": row for name, row in summary["means"].items() if name != "clean"},
    }


def render(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    parts = {
        f"Character error rate in per cent, {result['blocks']} blocks for each damage": rates(
            result
        ),
        "Blocks that are read worse than raw by more than one point, in per cent": result["worse"],
        "Pixels that f, and one more f, change by more than 8 levels, in per cent": result[
            "pixels"
        ],
        "Levels by which photographs on a page change, on average": {"": result["photographs"]},
        "Character error rate in per cent, whole pages": result["pages"],
    }
    tables = [
        f"{title}\n\n"
        + table(
            [{"": name} | {k: f"{v:.1f}" for k, v in row.items()} for name, row in rows.items()]
        )
        for title, rows in parts.items()
        if rows
    ]
    return "\n\n".join(
        [*tables, f"An A4 page at 300 dpi: {result['page_s']:.1f} s on {available_cpus()} cores"]
    )


def missing(artifact: Path) -> str:
    """Why nothing can be measured; empty if everything is there."""
    needs = {
        "tesseract of Debian's tesseract-ocr": shutil.which("tesseract") is not None,
        "OpenCV, pip install opencv-python-headless": find_spec("cv2") is not None,
        f"{HANDBOOK} of Debian's debian-handbook": HANDBOOK.is_dir(),
        "fonts of the held-out families, see docs/training.md": bool(faces(held_out=True)),
        f"a model in {artifact}": artifact.is_dir(),
    }
    return ", ".join(name for name, found in needs.items() if not found)


def run(
    artifact: Artifact, numbers: Sequence[int], file: Path | None
) -> tuple[dict[str, Any], dict[str, Method]]:
    """Measure every method that is installed. Records of ``file``, which it lengthens, are not
    measured again.
    """
    setting = tuned_sauvola() if find_spec("doxapy") else None
    methods = methods_of(artifact, setting)
    # Of what decides on its pictures; that of the file changes with its card.
    digest = digest_of(artifact.golden().y.tobytes() + repr(artifact.card.tiles).encode())
    records = (
        []
        if file is None or not file.is_file()
        else [json.loads(line) for line in file.read_text().splitlines()]
    )
    makers = {"f": digest, "f2": digest, "sauvola": repr(setting)}
    records = [
        each
        for each in records
        if each["model"] == makers.get(each["method"], "") and each["block"] in numbers
    ]
    if not find_spec("augraphy"):
        records = [each for each in records if not each["condition"].startswith("augraphy")]
    records = [each for each in records if each["method"] in methods]
    known = {(each["block"], each["condition"], each["method"]) for each in records}
    with (file or Path(os.devnull)).open("a") as opened:
        for number in tqdm(numbers, unit="block"):
            for record in measure(number, methods, known):
                records.append(record | {"model": makers.get(record["method"], "")})
                print(json.dumps(records[-1]), file=opened, flush=True)
    # in the same order, whatever was measured first
    records.sort(key=lambda each: [*methods].index(each["method"]))
    absent = [name for name in ("doxapy", "augraphy") if not find_spec(name)]
    absent += [] if "unpaper" in methods else ["unpaper"]
    blocks, pages = (
        [each for each in records if (each["block"] >= _FIRST_PAGE) == page]
        for page in (False, True)
    )
    result = {
        **summarise(blocks),
        "pages": rates(summarise(pages)) if pages else {},
        "photographs": photographs(artifact),
        "page_s": page_seconds(artifact.folder),
        "sauvola": setting,
        "not_run": absent,
    }
    return result, methods


def write_card(folder: Path, result: Mapping[str, Any]) -> None:
    artifacts = read_all(folder, threads=1)
    card = TrainedCard.model_validate(
        {**artifacts[0].card.model_dump(), "quality": {"ocr": result}}
    )
    publish(folder, with_card(artifacts, card), keep=True)


def main(arguments: Sequence[str] | None = None) -> int:
    cli = argparse.ArgumentParser(description="Measure what tesseract reads from cleaned pages.")
    newest = max(
        Path("models/scans").glob("*"),
        key=lambda folder: int(folder.name),
        default=Path("models/scans"),
    )
    cli.add_argument("--model", type=Path, default=newest)
    cli.add_argument("--blocks", type=int, default=16)
    cli.add_argument(
        "--pages", type=int, default=0, help="whole pages, of which each takes a quarter of an hour"
    )
    cli.add_argument("--out", type=Path, help="JSON")
    cli.add_argument(
        "--records", type=Path, help="JSON lines of what is read, which continue a run"
    )
    cli.add_argument("--sheet", type=Path, help="WebP of a block: damaged, background, f")
    cli.add_argument(
        "--real",
        type=Path,
        help="a folder of pages with their texts, which are read instead of blocks",
    )
    cli.add_argument("--card", action="store_true", help="write the figures into the model's card")
    options = cli.parse_args(arguments)
    if options.real:
        rows = real_pages(options.real, methods_of(Artifact.read(options.model, threads=1), None))
        print(
            table(
                [
                    {"": page} | {name: f"{rate:.1f}" for name, rate in row.items()}
                    for page, row in rows.items()
                ]
            )
        )
        return 0
    if reason := missing(options.model):
        print(f"skipped: needs {reason}")
        return 0
    numbers = [*range(options.blocks), *range(_FIRST_PAGE, _FIRST_PAGE + options.pages)]
    result, methods = run(Artifact.read(options.model, threads=1), numbers, options.records)
    print(render(result))
    if options.sheet:
        with atomic_write(options.sheet) as file:
            Image.fromarray(sheet(methods)).save(file, "WEBP", quality=70)
    if options.out:
        with atomic_write(options.out) as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())
    if options.card:
        write_card(options.model, result)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, subprocess.CalledProcessError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(2)
