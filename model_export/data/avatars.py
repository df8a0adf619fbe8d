"""A data set of drawn faces in colour with known attributes.

DiceBear draws the faces in its style Adventurer; the art is by Lisa Wischofsky, licensed under CC BY 4.0. The options
that DiceBear chose for a picture are its attributes.
"""

import io
import json
import os
import re
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from model_export.errors import UserError
from model_export.files import atomic_write

LICENCE: Final = "CC BY 4.0"
ATTRIBUTION: Final = "Remix of “Adventurer” by Lisa Wischofsky (CC BY 4.0), drawn with DiceBear."
BACKGROUNDS: Final = ("b6e3f4", "c0aede", "d1d4f9", "ffd5dc", "ffdfbf")

# Attribute → component or colour of the style.
_COMPONENTS: Final = {
    "hair": "hair",
    "eyes": "eyes",
    "mouth": "mouth",
    "brows": "eyebrows",
    "glasses": "glasses",
    "earrings": "earrings",
    "details": "details",
}
_COLOURS: Final = {"skin": "skin", "hair_colour": "hair"}
_NONE: Final = "none"  # the value of an attribute that the picture does not have
_HELD_OUT: Final = 10  # every tenth picture, at the end of the set
_CHUNK: Final = 100  # pictures that a process draws at once
_SMALLEST, _LARGEST = 8, 512


@dataclass(frozen=True, slots=True)
class AvatarOptions:
    """What `write_avatars` draws."""

    count: int  # number of pictures, ≥ 20; the last tenth is held out
    size: int = 64  # height and width, 8 … 512
    seed: int = 0  # picture i is a function of seed, i, size and backgrounds only
    # Colours as six hexadecimal digits, equally likely; `BACKGROUNDS` if there are none.
    backgrounds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 2 * _HELD_OUT:
            raise UserError(f"--n {self.count}: at least {2 * _HELD_OUT} pictures")
        if not _SMALLEST <= self.size <= _LARGEST:
            raise UserError(f"--size {self.size}: {_SMALLEST} to {_LARGEST}")
        for colour in self.backgrounds:
            if not re.fullmatch("[0-9a-fA-F]{6}", colour):
                raise UserError(f"--backgrounds {colour}: a colour is six hexadecimal digits, such as b6e3f4")


def write_avatars(options: AvatarOptions, out: Path, *, processes: int = 0) -> None:
    """Draw the set and write it as an `.npz` that `load_dataset` reads.

    The file has `x_train` and `x_test` (N, size, size, 3) uint8, `attributes` (the names), `attributes_train` and
    `attributes_test` (N, attributes) uint8, the names of the values as `values_<attribute>`, `licence` and
    `attribution`. With 0 processes there is one for each core; the result does not depend on their number.
    """
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: the file name must end in .npz")
    values = _attribute_values()
    pictures = np.empty((options.count, options.size, options.size, 3), np.uint8)
    attributes = np.empty((options.count, len(values)), np.uint8)
    workers = min(processes or len(os.sched_getaffinity(0)), -(-options.count // _CHUNK))
    # `spawn`, because a fork would copy the threads' locks of libraries that are already loaded.
    several = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else nullcontext()
    with several as pool:
        draw, indices = partial(_draw, options), range(options.count)
        drawn = pool.map(draw, indices, chunksize=_CHUNK) if pool else map(draw, indices)
        for i, each in enumerate(tqdm(drawn, total=options.count, unit="picture", mininterval=1.0)):
            pictures[i], attributes[i] = each
    train = options.count - options.count // _HELD_OUT
    arrays: dict[str, NDArray[Any]] = {
        "x_train": pictures[:train],
        "x_test": pictures[train:],
        "attributes": np.array(list(values)),
        "attributes_train": attributes[:train],
        "attributes_test": attributes[train:],
        "licence": np.array(LICENCE),
        "attribution": np.array(ATTRIBUTION),
    }
    arrays |= {f"values_{name}": np.array(names) for name, names in values.items()}
    with atomic_write(out) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _draw(options: AvatarOptions, index: int) -> tuple[NDArray[np.uint8], list[int]]:
    """A picture (size, size, 3) and its attributes."""
    import resvg_py
    from dicebear import Avatar

    chosen = {
        "seed": f"{options.seed}-{index}",
        "size": options.size,
        "backgroundColor": list(options.backgrounds or BACKGROUNDS),
        "glassesProbability": 30,  # per cent; the style's own 10 would make them rare
    }
    drawn = Avatar(_style(), chosen).to_json()
    data = resvg_py.svg_to_bytes(svg_string=drawn["svg"], skip_system_fonts=True)
    with Image.open(io.BytesIO(data)) as image:
        picture = np.asarray(image.convert("RGB"))
    return picture, [names.index(_value_of(name, drawn["options"])) for name, names in _attribute_values().items()]


@cache
def _attribute_values() -> dict[str, list[str]]:
    components, colours = _definition()["components"], _definition()["colors"]
    values = {
        name: [*([_NONE] if "probability" in components[part] else []), *components[part]["variants"]]
        for name, part in _COMPONENTS.items()
    }
    return values | {name: [_NONE, *colours[colour]["values"]] for name, colour in _COLOURS.items()}


def _value_of(name: str, chosen: dict[str, Any]) -> str:
    if name in _COMPONENTS:
        return chosen.get(f"{_COMPONENTS[name]}Variant") or _NONE
    colours = chosen.get(f"{_COLOURS[name]}Color")
    return colours[0] if colours else _NONE  # some hair is without a hair colour


@cache
def _definition() -> dict[str, Any]:
    if any(find_spec(package) is None for package in ("dicebear", "dicebear_styles", "resvg_py")):
        raise UserError("data avatars needs the extra `avatars`: pip install dicebear-core dicebear-styles resvg-py")
    definition: dict[str, Any] = json.loads(files("dicebear_styles").joinpath("adventurer.json").read_text("utf-8"))
    return definition


@cache
def _style() -> Any:
    from dicebear import Style

    return Style(_definition())
