"""What schemathesis cannot know from `/openapi.json`: real pictures, and the rules between fields.

The document says what JSON Schema can say. The rest is mended here, in requests that are meant to be valid only, and
just before they leave; requests that are meant to be invalid go out as they were generated.
"""

import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import numpy as np
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis import Case, GenerationMode, HookContext
from schemathesis.hooks import GLOBAL_HOOK_DISPATCHER

from service.domain.latents import MAX_SEED, FloatRow
from tests.contract.data import COLOUR, GREY, b64, npy
from tests.contract.oip import LENGTH, as_binary
from tests.helpers.pictures import noise, save

MAX_IMAGES, MAX_STEPS = 4, 8  # of the service that is asked, so that 2000 requests are no work for it
_RECORD = "[0-9]+(,[0-9]+)*"
_SIZE = (28, 28)  # of all pictures, the document's examples too, so that any of them can be the mask of any other


def _pictures(form: str) -> list[bytes]:
    colour, grey = Image.fromarray(noise(*_SIZE, 3)), Image.fromarray(noise(*_SIZE))
    kinds = [colour, grey]
    if form == "PNG":
        kinds += [colour.convert("RGBA"), grey.convert("LA"), colour.convert("P"), grey.convert("1")]
    if form == "JPEG":
        kinds += [colour.convert("CMYK")]
    return [save(picture, form) for picture in kinds]


_ROW: FloatRow = np.tile(np.arange(8, dtype=np.float32), (1, 8, 1))
_NPY = [b64(npy(_ROW)), b64(npy(_ROW.astype(">f4"))), b64(npy(np.asfortranarray(_ROW)))]
_TENSOR = as_binary(_ROW[None], parameters={"binary_data_output": True})
_FILES = {f"image/{form.lower()}": _pictures(form) for form in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")}
_TEXTS = [b64(data) for files in _FILES.values() for data in files]
_TEXTS += [f"data:image/png;base64,{_TEXTS[0]}", f" {_TEXTS[0][:20]}\n{_TEXTS[0][20:]}"]


def register() -> None:
    """Make strings and bodies of the formats that the document names."""
    schemathesis.openapi.format("base64-picture", st.sampled_from(_TEXTS))
    schemathesis.openapi.format("base64-npy", st.sampled_from(_NPY))
    for kind, files in _FILES.items():
        schemathesis.openapi.media_type(kind, st.sampled_from(files))
    schemathesis.openapi.media_type("application/octet-stream", st.just(_TENSOR[0]))


@contextmanager
def mended() -> Iterator[None]:
    """Mend valid requests while the block runs."""
    register()
    schemathesis.hook("before_call")(_mend)
    schemathesis.hook("map_body")(_mend_form)
    try:
        yield
    finally:
        GLOBAL_HOOK_DISPATCHER.unregister(_mend)
        GLOBAL_HOOK_DISPATCHER.unregister(_mend_form)


def _mend_form(_: HookContext, body: Any) -> Any:
    """Forms are mended as they are made: with files in them, they could not be told from invalid ones later."""
    form = getattr(body, "body", body)  # which comes beside the content types of its files
    if isinstance(form, dict) and "image" in form and _is_regular(form):
        _options(form)
    return body


def _is_regular(form: dict[str, Any]) -> bool:
    steps, record = form.get("steps", 1), form.get("record", "0")
    return isinstance(steps, int) and isinstance(record, str) and re.fullmatch(_RECORD, record) is not None


def _mend(_: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if case.path.endswith("/infer"):
        _infer(case)
    elif case.path.endswith("/unload") and case.path_parameters.get("name") == "grey":
        case.path_parameters["name"] = "colour"  # the default model stays
    elif case.method == "POST" and not case.path.startswith("/v2"):
        _native(case)
    elif case.query:
        _take_own_size(case.query)


def _take_own_size(options: dict[str, Any]) -> None:
    """The models that there are make images of their own size only."""
    for name in ("width", "height"):
        options.pop(name, None)


def _native(case: Case[Any]) -> None:
    raw = str(case.media_type).startswith("image/")
    if not raw:
        case.query.clear()  # options belong in the body
    if case.media_type == "application/json" and isinstance(case.body, dict):
        body = case.body = _whole(case.body)
        _options(body)
    elif raw:
        _options(case.query)
    options = case.query if raw else case.body if isinstance(case.body, dict) else {}
    forms = list(case.operation.definition.raw["responses"]["200"]["content"])
    if options.get("record"):
        forms = [form for form in forms if form in ("application/json", "text/event-stream")]
    if options.get("grid"):
        forms = [form for form in forms if form not in ("image/gif", "image/apng")]
    if options.get("columns") or options.get("gap"):
        forms = ["image/png", "image/jpeg"]
    if options.get("scale", 1) != 1:
        forms = [form for form in forms if form not in ("application/x-npy", "image/tiff")]
    # Schemathesis accepts anything, which is JSON; each of the other forms has its turn, whatever the body is.
    case.headers["Accept"] = forms[_number(options, case.media_type) % len(forms)]


def _options(options: dict[str, Any]) -> None:
    """The rules between fields that JSON Schema has no words for, and models that there are, for three in four."""
    _take_own_size(options)
    if isinstance(name := options.get("model"), str):
        options["model"] = ("grey", "grey/2", "grey/10", name)[_number(name) % 4]
    if record := options.get("record"):
        steps = int(options.get("steps") or 1)
        numbers = record.split(",") if isinstance(record, str) else record
        ascending = sorted({min(int(number), steps) for number in numbers})
        options["record"] = ",".join(map(str, ascending)) if isinstance(record, str) else ascending
        for name in ("columns", "gap"):
            options.pop(name, None)
    if options.get("scale", 1) != 1 and options.get("format") == "npy":
        options["format"] = "png"
    if "offset" in options:
        options["offset"] = min(options["offset"], MAX_SEED + 1 - options.get("n", 1))
    if options.get("masks"):
        options["masks"] = list(islice(cycle(options["masks"]), len(options["images"])))
    if grid := options.get("grid"):
        grid["cols"] = min(grid["cols"], 256 // grid["rows"])
    # At most IGN_MAX_PIXELS, and no side of a sheet of 256 pictures beyond what WebP and JPEG hold.
    is_sheet = any(options.get(name) for name in ("grid", "columns", "gap"))
    for name, most in (("scale", 4 if is_sheet else 24), ("gap", 16)):
        if isinstance(value := options.get(name), int):
            options[name] = min(value, most)
    if terms := options.get("terms"):
        first, *others = terms
        if sum(term.get("weight", 1) for term in others) == -first.get("weight", 1):
            first["weight"] = 3 if first.get("weight", 1) != 3 else 2  # a sum of zero is no latent


def _infer(case: Case[Any]) -> None:
    """A tensor's data, shape and model have to agree, and so do a binary tensor, its size and the header."""
    case.headers.pop(LENGTH, None)
    if isinstance(case.body, dict):
        body = case.body = _whole(case.body)
        shape = COLOUR if case.path_parameters.get("name") == "colour" else GREY
        (tensor,) = body["inputs"]
        rows = min(tensor["shape"][0], MAX_IMAGES)
        given = [float(np.clip(x, -9, 9)) for x in tensor.get("data") or () if type(x) in (int, float)]
        data: list[Any] = list(islice(cycle(given or [0.5]), rows * math.prod(shape)))
        case.body = {**body, "inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, *shape], "data": data}]}
    elif isinstance(case.body, bytes):
        case.headers[LENGTH] = str(_TENSOR[1])
        if case.path_parameters.get("name") == "colour":
            case.path_parameters["name"] = "grey"


def _number(*of: Any) -> int:
    """The same for the same, in every process."""
    return zlib.crc32(repr(of).encode())


def _whole(value: Any) -> Any:
    """JSON Schema counts 2.0 among the integers, the service does not."""
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and abs(value) < 2**53 and value.is_integer() else value
