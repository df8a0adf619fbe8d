"""Good requests for every endpoint, those of bad clients, and which answers are right."""

import json
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from benchmarks.harness.common import REF
from benchmarks.load_generator import messages
from benchmarks.load_generator.fetch import Answer
from benchmarks.load_generator.messages import (
    EVENTS,
    HEADER_LENGTH,
    JSON,
    NPY,
    get,
    post,
    post_form,
    request,
    upload,
)
from model_export.data.chance import choose
from tests.contract.data import CALLS, b64, npy
from tests.helpers.pictures import save

Rng = np.random.Generator

BODY_BYTES: Final = 1 << 20
PIXELS: Final = 250_000
SETTINGS: Final = {
    "IGN_MAX_BODY_BYTES": str(BODY_BYTES),
    "IGN_MAX_PIXELS": str(PIXELS),
    "IGN_RECEIVE_TIMEOUT_S": "2",
    "IGN_ACCESS_LOG": "0",
}
"""Service settings with limits that some of the requests exceed."""

REJECTIONS: Final = frozenset({429, 503})
LEAKS: Final = (b"Traceback", b'File \\"', b"site-packages", b"/service/")
_PICTURE: Final = save(messages.disc(size=40))
_LATENT: Final = b64(npy(np.ones((1, 28, 28), np.float32)))
_POINTS: Final = [{"seed": 2, "index": 3}, {"image": b64(_PICTURE)}, {"latent": _LATENT}]
_GRID: Final = {"rows": 2, "cols": 3}
_TENSOR: Final = {"name": "x", "shape": [2, 1, 28, 28], "datatype": "FP32"}
KNOWN: Final = post("/generate", {"seed": 1, "steps": 1}, "image/png")
GOOD: Final = (
    KNOWN,
    *(post(path, body) for path, body in CALLS.items()),
    post("/generate", {"seed": 1, "n": 16, "steps": 4, "noise_scale": 1.5}, NPY),
    post("/generate", {"seed": 2, "n": 5, "model": "fashion_mnist", "offset": 5}, "image/webp"),
    post("/generate", {"seed": 3, "steps": 3, "record": [0, 1, 3], "format": "npy", "score": True}),
    post("/generate", {"seed": 4, "n": 3, "steps": 300, "record": [0, 300]}, EVENTS),
    post("/generate", {"seed": 5, "n": 9, "steps": 4, "tolerance": 0.01}, "image/jpeg"),
    post("/project", {"images": [b64(_PICTURE)] * 3, "mask": b64(_PICTURE), "strength": 0.5}),
    post_form("/project", [("image", _PICTURE), ("resize", b"crop"), ("steps", b"2")], "image/png"),
    upload("/project?steps=1&score=true&resize=stretch", _PICTURE, JSON),
    post("/latent-interpolate", {"points": _POINTS, "frames": 9, "loop": True}, "image/gif"),
    post("/latent-interpolate", {"points": _POINTS, "frames": 6, "method": "lerp"}, "image/apng"),
    post("/latent-interpolate", {"points": [*_POINTS, {"seed": 1}], "grid": _GRID}, NPY),
    post_form("/score", [("image", _PICTURE)] * 2),
    post("/v2/models/mnist/infer", {"inputs": [_TENSOR | {"data": [0.5] * 1568}]}),
    messages.binary_tensor("mnist", bytes(4 * 784)),
)
"""Their responses are always the same, but for times."""

_PATHS: Final = (
    "/models",
    "/models/mnist",
    f"/models/{REF}",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/mnist",
    "/v2/models/mnist/config",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A request and the answers it allows."""

    kind: str
    data: bytes
    # besides `REJECTIONS`; None: of a hostile request
    expected: frozenset[int] | None = frozenset({200})
    leave_after_s: float | None = None  # seconds until the client disconnects
    # a close without an answer is right too: the bytes need not be a whole request
    may_close: bool = False


def problem(case: Case, answer: Answer) -> str:
    """Why an answer is unexpected; empty if it is not."""
    if case.expected is None:
        return _problem_of_hostile(answer)
    if answer.status in REJECTIONS:
        return "" if "retry-after" in answer.headers else f"{answer.status} without Retry-After"
    return "" if answer.status in case.expected else f"{answer.status} {answer.body[:300]!r}"


def _problem_of_hostile(answer: Answer) -> str:
    """A hostile request may succeed; else it gets a problem document, without anything of the
    program.
    """
    if answer.status < 400:
        return ""
    if answer.status >= 500 and answer.status not in (501, 503, 504):
        return f"{answer.status} {answer.body[:300]!r}"
    if any(leak in answer.body for leak in LEAKS):
        return f"{answer.status} leaks {answer.body[:300]!r}"
    try:
        document = json.loads(answer.body)
        described = document["code"] if "code" in document else document["error"]
    except (ValueError, KeyError, TypeError):
        return f"{answer.status} without a problem document: {answer.body[:100]!r}"
    return "" if described else f"{answer.status} without a code"


def content(answer: Answer) -> object:
    """What the same request always gets: the body, without what has times."""
    media = answer.headers.get("content-type", "").partition(";")[0]
    if media == JSON:
        document = json.loads(answer.body)
        return document.get("images", document.get("outputs"))
    if media == EVENTS:
        return answer.body.partition(b"event: done")[0]
    return answer.body[int(answer.headers.get(HEADER_LENGTH.lower(), 0)) :]


def good(rng: Rng) -> Case:
    """A request that must be answered with 200."""
    if rng.random() < 0.1:
        path = choose(rng, _PATHS)
        return Case(f"GET {path}", get(path))
    data = choose(rng, GOOD)
    return Case(data.split()[1].decode().partition("?")[0], data)


def disconnecting(rng: Rng) -> Case:
    """A request whose client disconnects: while sending, while waiting, or while reading the
    answer.
    """
    options = {"n": int(rng.integers(1, 64)), "steps": int(rng.integers(1, 3000)), "seed": 1}
    data = post("/generate", options, choose(rng, (JSON, NPY, EVENTS)))
    if rng.random() < 0.2:
        data = data[: rng.integers(1, len(data))]
    # 504: the deadline may be too short for so many steps, which the service says at once.
    return Case("left", data, frozenset({200, 504}), leave_after_s=float(rng.uniform(0, 0.1)))


def oversized(rng: Rng) -> Case:
    """A body or an image beyond its limit."""
    large = upload("/project", save(Image.new("L", (PIXELS // 100, 101))))
    body = request("/generate", b" " * (BODY_BYTES + 1), {"Content-Type": JSON})
    return Case("too large", choose(rng, (body, large)), frozenset({413}))


def slow_body(_: Rng) -> Case:
    """A body whose last byte never comes."""
    return Case("slow body", post("/generate", {})[:-1], frozenset({408}))


def image(rng: Rng) -> bytes:
    """An image of random size and mode, in a random format."""
    height, width = rng.integers(1, 80, 2)
    modes = {
        "PNG": "1 L LA P RGB RGBA I;16",
        "TIFF": "1 L LA P RGB RGBA I;16",
        "JPEG": "L RGB",
        "AVIF": "L RGB RGBA",
        "WEBP": "RGB RGBA",
        "BMP": "1 L P RGB",
        "GIF": "1 L P RGB",
    }
    form = choose(rng, list(modes))
    mode = choose(rng, modes[form].split())
    noise = rng.integers(256, size=(height, width), dtype=np.uint8)
    if mode == "I;16":
        return save(Image.fromarray(noise.astype(np.uint16) * 257), form)
    return save(Image.fromarray(noise).convert(mode), form)
