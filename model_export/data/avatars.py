"""A data set of drawn faces in colour with known attributes.

DiceBear draws the faces in its style Adventurer; the art is by Lisa Wischofsky, licensed under CC
BY 4.0. The options that DiceBear chose for a picture are its attributes.
"""

import io
import json
from functools import cache, partial
from importlib.resources import files
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_export.data.processes import in_processes
from model_export.errors import UserError

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


def draw_avatars(count: int = 40_000, *, size: int = 64) -> dict[str, NDArray[Any]]:
    """Draw the set. Picture i is a function of i and the size; the last tenth is held out.

    `x_train` and `x_test` (N, size, size, 3) uint8, `attributes` (the names), `attributes_train`
    and `attributes_test` (N, attributes) uint8, and the names of the values as
    `values_<attribute>`. Raises UserError without DiceBear.
    """
    values = _attribute_values()
    pictures = np.empty((count, size, size, 3), np.uint8)
    attributes = np.empty((count, len(values)), np.uint8)
    for i, drawn in enumerate(
        in_processes(partial(_draw, size), count, chunk=_CHUNK, unit="picture")
    ):
        pictures[i], attributes[i] = drawn
    train = count - count // _HELD_OUT
    return {
        "x_train": pictures[:train],
        "x_test": pictures[train:],
        "attributes": np.array(list(values)),
        "attributes_train": attributes[:train],
        "attributes_test": attributes[train:],
        **{f"values_{name}": np.array(names) for name, names in values.items()},
    }


def _draw(size: int, index: int) -> tuple[NDArray[np.uint8], list[int]]:
    """A picture (size, size, 3) and its attributes."""
    import resvg_py
    from dicebear import Avatar

    chosen = {
        "seed": f"0-{index}",
        "size": size,
        "backgroundColor": list(BACKGROUNDS),
        "glassesProbability": 30,  # per cent; the style's own 10 would make them rare
    }
    drawn = Avatar(_style(), chosen).to_json()
    data = resvg_py.svg_to_bytes(svg_string=drawn["svg"], skip_system_fonts=True)
    with Image.open(io.BytesIO(data)) as image:
        picture = np.asarray(image.convert("RGB"))
    return picture, [
        names.index(_value_of(name, drawn["options"]))
        for name, names in _attribute_values().items()
    ]


@cache
def _attribute_values() -> dict[str, list[str]]:
    components = _definition()["components"]
    colours = _definition()["colors"]
    values = {
        name: [
            *([_NONE] if "probability" in components[part] else []),
            *components[part]["variants"],
        ]
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
        raise UserError(
            "avatars64 needs the extra `avatars`: pip install dicebear-core dicebear-styles "
            "resvg-py"
        )
    return json.loads(files("dicebear_styles").joinpath("adventurer.json").read_text("utf-8"))


@cache
def _style() -> Any:
    from dicebear import Style

    return Style(_definition())
