"""Random good requests for every endpoint, and those of bad clients, each with the answers it
allows.
"""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image

from benchmarks.harness.common import REF, Json
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
    text,
)

Rng = np.random.Generator

BODY_BYTES: Final = 1 << 20
PIXELS: Final = 250_000
SETTINGS: Final = {
    "IGN_MAX_BODY_BYTES": str(BODY_BYTES),
    "IGN_MAX_PIXELS": str(PIXELS),
    "IGN_HEAD_TIMEOUT_S": "3",
    "IGN_BODY_TIMEOUT_S": "2",
    "IGN_ACCESS_LOG": "0",
}
"""Service settings with limits that some of the requests exceed."""

REJECTIONS: Final = frozenset({429, 503})
LEAKS: Final = (b"Traceback", b'File \\"', b"site-packages", b"/service/")
_RASTER: Final = ("image/png", "image/webp", "image/jpeg")
_JSON: Final = {"Content-Type": JSON}
_PATHS: Final = (
    *(
        "/models",
        "/models/mnist",
        f"/models/{REF}",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/docs",
    ),
    *("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/mnist", "/v2/models/mnist/config"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A request and the answers it allows."""

    kind: str
    data: bytes
    # besides `REJECTIONS`; None: of a hostile request
    expected: frozenset[int] | None = frozenset({200})
    # raises if the body of a 200 is not what was requested
    check: Callable[[Answer], None] = lambda _: None
    leave_after_s: float | None = None  # seconds until the client disconnects
    # a close without an answer is right too: the bytes need not be a whole request
    may_close: bool = False


def problem(case: Case, answer: Answer) -> str:
    """Why an answer is unexpected; empty if it is not."""
    if case.expected is None:
        return _problem_of_hostile(answer)
    if answer.status in REJECTIONS:
        return "" if "retry-after" in answer.headers else f"{answer.status} without Retry-After"
    if answer.status not in case.expected:
        return f"{answer.status} {answer.body[:300]!r}"
    if answer.status == 200:
        try:
            case.check(answer)
        except Exception as exc:  # any decoder error means a wrong answer
            return f"200, but {exc!r}"
    return ""


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


def choose(rng: Rng, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def good(rng: Rng) -> Case:
    """A request that must be answered with 200."""
    makers = (
        generate,
        generate,
        project,
        project,
        interpolate,
        arithmetic,
        score,
        stream,
        infer,
        ask,
    )
    case: Case = choose(rng, makers)(rng)
    return case


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


def generate(rng: Rng) -> Case:
    n = int(rng.integers(1, 17))
    media = choose(rng, (JSON, "*/*", NPY, *_RASTER))
    options: Json = {
        "n": n,
        "steps": int(rng.integers(1, 5)),
        "noise_scale": float(rng.uniform(0, 2)),
    }
    options["seed"] = int(rng.integers(2**32))
    for name, value in (
        ("tolerance", 0.01),
        ("score", True),
        ("offset", 5),
        ("model", "fashion_mnist"),
    ):
        if rng.random() < 0.3:
            options[name] = value
    if media in (JSON, "*/*"):
        options["format"] = choose(rng, ("png", "jpeg", "webp", "npy"))
        if rng.random() < 0.2:
            options["record"] = list(range(options["steps"] + 1))
    return Case(f"generate {media}", post("/generate", options, media), check=shown(media, n))


def project(rng: Rng) -> Case:
    images = [image(rng) for _ in range(rng.integers(1, 5))]
    media = choose(rng, (*_RASTER, NPY, JSON))
    how = choose(rng, ("JSON", "form", "raw"))
    resize = choose(rng, ("fit", "crop", "stretch"))
    if how == "JSON":
        options: Json = {
            "images": [text(each) for each in images],
            "strength": float(rng.random()),
            "resize": resize,
        }
        options |= (
            {"mask": text(image(rng, size=(28, 28), mode="L"))}
            if rng.random() < 0.3
            else {"invert": True}
        )
        return Case(
            "project JSON", post("/project", options, media), check=shown(media, len(images))
        )
    if how == "form":
        parts = [
            *(("image", each) for each in images),
            ("resize", resize.encode()),
            ("steps", b"2"),
        ]
        return Case(
            "project form", post_form("/project", parts, media), check=shown(media, len(images))
        )
    data = messages.upload(f"/project?steps=1&score=true&resize={resize}", images[0], media)
    return Case("project raw", data, check=shown(media, 1))


def interpolate(rng: Rng) -> Case:
    media = choose(rng, (JSON, NPY, "image/png", "image/webp", "image/gif", "image/apng"))
    frames = int(rng.integers(2, 20))
    latent = messages.npy(rng.standard_normal((1, 28, 28), dtype=np.float32))
    points = [
        {"seed": 1},
        {"seed": 2, "index": 3},
        {"image": text(image(rng))},
        {"latent": text(latent)},
    ]
    options: Json = {"points": points, "method": choose(rng, ("slerp", "lerp"))}
    if media in ("image/gif", "image/apng") or rng.random() < 0.7:
        options |= {"frames": frames, "loop": bool(rng.integers(2))}
    else:
        frames = 6
        options["grid"] = {"rows": 2, "cols": 3}
    return Case(
        f"interpolate {media}",
        post("/latent-interpolate", options, media),
        check=shown(media, frames),
    )


def arithmetic(rng: Rng) -> Case:
    terms = [
        {"seed": int(seed), "weight": float(rng.uniform(-2, 2))}
        for seed in rng.integers(2**32, size=3)
    ]
    return Case("arithmetic", post("/latent-arithmetic", {"terms": terms}), check=shown(JSON, 1))


def score(rng: Rng) -> Case:
    images = [("image", image(rng)) for _ in range(rng.integers(1, 4))]

    def check(answer: Answer) -> None:
        assert len(json.loads(answer.body)["images"]) == len(images)

    return Case("score", post_form("/score", images), check=check)


def stream(rng: Rng) -> Case:
    n = int(rng.integers(1, 4))
    steps = int(rng.integers(1, 300))

    def check(answer: Answer) -> None:
        events = [line for line in answer.body.decode().splitlines() if line.startswith("event:")]
        assert events[-1] == "event: done", events[-1]
        assert events.count("event: step") == 2 * n, events

    options = {"n": n, "steps": steps, "record": [0, steps], "seed": 3}
    return Case("stream", post("/generate", options, EVENTS), check=check)


def infer(rng: Rng) -> Case:
    """The Open Inference Protocol: a tensor as JSON or binary."""
    rows = rng.standard_normal((int(rng.integers(1, 5)), 1, 28, 28), np.float32)
    tensor: Json = {"name": "x", "shape": list(rows.shape), "datatype": "FP32"}
    if rng.random() < 0.5:
        body = json.dumps({"inputs": [tensor | {"data": rows.ravel().tolist()}]}).encode()
        headers = dict(_JSON)
    else:
        tensor["parameters"] = {"binary_data_size": rows.nbytes}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        body = head + rows.tobytes()
        headers = {HEADER_LENGTH: str(len(head))}

    def check(answer: Answer) -> None:
        length = int(answer.headers.get(HEADER_LENGTH.lower(), len(answer.body)))
        assert json.loads(answer.body[:length])["outputs"][0]["shape"] == list(rows.shape)

    return Case("infer", request("/v2/models/mnist/infer", body, headers), check=check)


def ask(rng: Rng) -> Case:
    path = choose(rng, _PATHS)
    return Case(f"GET {path}", get(path))


def oversized(rng: Rng) -> Case:
    """A body or an image beyond its limit."""
    large = messages.encoded(Image.new("L", (PIXELS // 100, 101)))
    data = choose(
        rng,
        (request("/generate", b" " * (BODY_BYTES + 1), _JSON), messages.upload("/project", large)),
    )
    return Case("too large", data, frozenset({413}))


def slow_body(_: Rng) -> Case:
    """A body whose last byte never comes."""
    return Case("slow body", request("/generate", b"{}", _JSON)[:-1], frozenset({408}))


def image(rng: Rng, size: tuple[int, int] | None = None, mode: str | None = None) -> bytes:
    """A random image, with random size and mode unless given, and in a random format."""
    width, height = size or (int(rng.integers(1, 80)), int(rng.integers(1, 80)))
    chosen = mode or choose(rng, ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))
    noise = rng.integers(256, size=(height, width), dtype=np.uint8)
    result = Image.fromarray(noise)
    result = (
        Image.fromarray(noise.astype(np.uint16) * 257)
        if chosen == "I;16"
        else result.convert(chosen)
    )
    kinds = (
        ["PNG", "TIFF"]
        + ["JPEG", "AVIF"] * (chosen in ("L", "RGB"))
        + ["WEBP", "AVIF"] * (chosen in ("RGB", "RGBA"))
    )
    kinds += ["BMP", "GIF"] * (chosen in ("1", "L", "P", "RGB"))
    return messages.encoded(result, choose(rng, kinds))


def shown(media: str, n: int) -> Callable[[Answer], None]:
    """A check that an answer contains ``n`` images in this format."""

    def check(answer: Answer) -> None:
        if media in (JSON, "*/*"):
            images = json.loads(answer.body)["images"]
            assert len(images) == n, f"{len(images)} images for {n}"
            assert all(base64.b64decode(each["data"]) for each in images)
        elif media == NPY:
            rows = np.load(io.BytesIO(answer.body))
            assert len(rows) == n, f"{len(rows)} rows for {n}"
            assert np.isfinite(rows).all(), "a row is not finite"
        else:
            with Image.open(io.BytesIO(answer.body)) as result:
                result.load()

    return check
