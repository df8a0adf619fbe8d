"""What schemathesis cannot know from `/openapi.json`: real pictures, and the rules between fields.

The document says what JSON Schema can say. The rest is mended here, in requests that are meant to be valid only, and
just before they leave; requests that are meant to be invalid go out as they were generated.
"""

import base64
import io
import json
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

from service.domain.latents import MAX_SEED
from tests.contract.harness import GREY
from tests.service.pictures import noise, save

MAX_IMAGES, MAX_STEPS = 4, 8  # of the service that is asked, so that 2000 requests are no work for it
_SHAPES = {"grey": [1, 8, 8], "colour": [3, 8, 8]}
_SIZE = (2, 2)  # of all pictures, the document's examples too, so that any of them can be the mask of any other


def _pictures(form: str) -> list[bytes]:
    colour, grey = Image.fromarray(noise(*_SIZE, 3)), Image.fromarray(noise(*_SIZE))
    kinds = [colour, grey]
    if form == "PNG":
        kinds += [colour.convert("RGBA"), grey.convert("LA"), colour.convert("P"), grey.convert("1")]
    if form == "JPEG":
        kinds += [colour.convert("CMYK")]
    return [save(picture, form) for picture in kinds]


def _npy(dtype: str) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(GREY, dtype) + np.arange(8).astype(dtype))
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


_FILES = {f"image/{form.lower()}": _pictures(form) for form in ("PNG", "JPEG", "WEBP")}
_TEXTS = [_base64(data) for files in _FILES.values() for data in files]
_TEXTS += [f"data:image/png;base64,{_TEXTS[0]}", f" {_TEXTS[0][:20]}\n{_TEXTS[0][20:]}"]


def register() -> None:
    """Make strings and bodies of the formats that the document names."""
    schemathesis.openapi.format("base64-picture", st.sampled_from(_TEXTS))
    schemathesis.openapi.format("base64-npy", st.sampled_from([_base64(_npy("<f4")), _base64(_npy(">f4"))]))
    for kind, files in _FILES.items():
        schemathesis.openapi.media_type(kind, st.sampled_from(files))


@contextmanager
def mended() -> Iterator[None]:
    """Mend valid requests while the block runs."""
    register()
    schemathesis.hook("before_call")(_mend)
    schemathesis.hook("map_body")(_mend_form)
    try:
        yield
    finally:
        schemathesis.hook.unregister(_mend)
        schemathesis.hook.unregister(_mend_form)


def _mend_form(_: HookContext, body: Any) -> Any:
    """Forms are mended as they are made: with files in them, they could not be told from invalid ones later."""
    if isinstance(body, dict) and "image" in body and re.fullmatch("[0-9]+(,[0-9]+)*", str(body.get("record"))):
        _options(body)
    return body


def _mend(_: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if case.path.endswith("/infer"):
        _infer(case)
    elif case.path.endswith("/unload") and case.path_parameters.get("name") == "grey":
        case.path_parameters["name"] = "colour"  # the default model stays
    elif case.method == "POST" and not case.path.startswith("/v2"):
        _native(case)


def _native(case: Case) -> None:
    raw = str(case.media_type).startswith("image/")
    if not raw:
        case.query.clear()  # options belong in the body
    if case.media_type == "application/json" and isinstance(case.body, dict):
        case.body = _whole(case.body)
        _options(case.body)
    elif raw:
        _options(case.query)
    options = case.query if raw else case.body if isinstance(case.body, dict) else {}
    forms = list(case.operation.definition.raw["responses"]["200"]["content"])
    if options.get("record"):
        forms = [form for form in forms if form in ("application/json", "text/event-stream")]
    if options.get("grid"):
        forms = [form for form in forms if form not in ("image/gif", "image/apng")]
    # Schemathesis accepts anything, which is JSON; each of the other forms has its turn, whatever the body is.
    case.headers["Accept"] = forms[zlib.crc32(repr((options, case.media_type)).encode()) % len(forms)]


def _options(options: dict[str, Any]) -> None:
    """The rules between fields that JSON Schema has no words for."""
    if record := options.get("record"):
        steps = int(options.get("steps") or 1)
        numbers = record.split(",") if isinstance(record, str) else record
        ascending = sorted({min(int(number), steps) for number in numbers})
        options["record"] = ",".join(map(str, ascending)) if isinstance(record, str) else ascending
    if "offset" in options:
        options["offset"] = min(options["offset"], MAX_SEED + 1 - options.get("n", 1))
    if options.get("masks"):
        options["masks"] = list(islice(cycle(options["masks"]), len(options["images"])))
    if grid := options.get("grid"):
        grid["cols"] = min(grid["cols"], 256 // grid["rows"])
    if terms := options.get("terms"):
        first, *others = terms
        if sum(term.get("weight", 1) for term in others) == -first.get("weight", 1):
            first["weight"] = 3 if first.get("weight", 1) != 3 else 2  # a sum of zero is no latent


def _infer(case: Case) -> None:
    """A tensor's data, shape and model have to agree, and so do a binary tensor, its size and the header."""
    case.headers.pop("Inference-Header-Content-Length", None)
    shape = _SHAPES.get(case.path_parameters.get("name", ""), [1, 8, 8])
    if case.media_type == "application/json":
        if not isinstance(case.body, dict):
            return
        body = case.body = _whole(case.body)
        (tensor,) = body["inputs"]
        rows = min(tensor["shape"][0], MAX_IMAGES)
        given = [float(np.clip(x, -9, 9)) for x in tensor.get("data") or () if type(x) in (int, float)]
        data = list(islice(cycle(given or [0.5]), rows * int(np.prod(shape))))
        case.body = {**body, "inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, *shape], "data": data}]}
        return
    data = np.zeros([1, *shape], "<f4").tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, *shape], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    case.headers["Inference-Header-Content-Length"] = str(len(head))
    case.body = head + data


def _whole(value: Any) -> Any:
    """JSON Schema counts 2.0 among the integers, the service does not."""
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
