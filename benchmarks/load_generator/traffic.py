"""Random good and bad requests for every endpoint, each with the answers it allows."""

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image

from benchmarks.load_generator.fetch import Answer
from benchmarks.load_generator.load import request

Rng = np.random.Generator

BODY_BYTES: Final = 1 << 20
PIXELS: Final = 250_000
SETTINGS: Final = {
    "IGN_MAX_BODY_BYTES": str(BODY_BYTES),
    "IGN_MAX_PIXELS": str(PIXELS),
    "IGN_BODY_TIMEOUT_S": "2",
    "IGN_ACCESS_LOG": "0",
}
"""Service settings with limits that some of the requests exceed."""

_RASTER: Final = {"image/png": "PNG", "image/webp": "WEBP", "image/jpeg": "JPEG"}
_JSON: Final = {"Content-Type": "application/json"}
_MODES: Final = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@dataclass(frozen=True, slots=True)
class Case:
    """A request and the answers it allows.

    Args:
        name: of its kind.
        data: the bytes to send.
        expected: allowed statuses, besides 429 and 503.
        check: raises if the body of a 200 is not what was requested.
        leave_after_s: seconds until the client disconnects; None if it does not.
    """

    name: str
    data: bytes
    expected: frozenset[int] = frozenset({200})
    check: Callable[[Answer], None] = lambda _: None
    leave_after_s: float | None = None


def pick(rng: Rng) -> Case:
    """A random request: 75 % are good, 13 % are bad, and 12 % disconnect."""
    luck = rng.random()
    if luck < 0.75:
        return good(rng)
    return bad(rng) if luck < 0.88 else disconnecting(rng)


def good(rng: Rng) -> Case:
    """A request that must be answered with 200."""
    kinds = (generate, generate, project_json, project_form, project_raw, interpolate, arithmetic, score, stream, ask)
    return kinds[rng.integers(len(kinds))](rng)


def disconnecting(rng: Rng) -> Case:
    """A request whose client disconnects: while sending, while waiting, or while reading the answer."""
    options = {"n": int(rng.integers(1, 64)), "steps": int(rng.integers(1, 3000)), "seed": 1}
    accept = ("application/json", "application/x-npy", "text/event-stream")[rng.integers(3)]
    data = post("/generate", options, accept)
    if rng.random() < 0.2:
        data = data[: rng.integers(1, len(data))]
    # 504: the deadline may be too short for so many steps, which the service says at once.
    return Case("left", data, frozenset({200, 504}), leave_after_s=float(rng.uniform(0, 0.1)))


def generate(rng: Rng) -> Case:
    n = int(rng.integers(1, 17))
    options: dict[str, Any] = {"n": n, "steps": int(rng.integers(1, 5)), "noise_scale": float(rng.uniform(0, 2))}
    for name, value in (("seed", int(rng.integers(2**32))), ("tolerance", 0.01), ("score", True), ("offset", 5)):
        if rng.random() < 0.3:
            options[name] = value
    media = ("application/json", "*/*", "application/x-npy", *_RASTER)[rng.integers(6)]
    if "/json" in media or media == "*/*":
        options["format"] = ("png", "jpeg", "webp", "npy")[rng.integers(4)]
        if rng.random() < 0.2:
            options["record"] = list(range(options["steps"] + 1))
    return Case(f"generate {media}", post("/generate", options, media), check=shown(media, n))


def project_json(rng: Rng) -> Case:
    pictures = [text(picture(rng)) for _ in range(rng.integers(1, 5))]
    options: dict[str, Any] = {"images": pictures, "strength": float(rng.random()), "invert": bool(rng.integers(2))}
    if rng.random() < 0.3:
        options["mask"] = text(picture(rng, size=(28, 28), mode="L"))
    return Case("project JSON", post("/project", options), check=shown("application/json", len(pictures)))


def project_form(rng: Rng) -> Case:
    n = int(rng.integers(1, 4))
    parts = [("image", picture(rng)) for _ in range(n)]
    parts += [("resize", ("fit", "crop", "stretch")[rng.integers(3)].encode()), ("steps", b"2")]
    body, kind = form(parts)
    accept = tuple(_RASTER)[rng.integers(3)]
    data = request("/project", body, {"Accept": accept, "Content-Type": kind})
    return Case("project form", data, check=shown(accept, n))


def project_raw(rng: Rng) -> Case:
    accept = ("image/png", "application/x-npy")[rng.integers(2)]
    data = request("/project?steps=1&score=true", picture(rng), {"Accept": accept, "Content-Type": "image/png"})
    return Case(f"project raw {accept}", data, check=shown(accept, 1))


def interpolate(rng: Rng) -> Case:
    kinds = ("application/json", "application/x-npy", "image/png", "image/webp", "image/gif", "image/apng")
    media, frames = kinds[rng.integers(len(kinds))], int(rng.integers(2, 20))
    latent = io.BytesIO()
    np.save(latent, rng.standard_normal((1, 28, 28), dtype=np.float32))
    points = [{"seed": 1}, {"seed": 2, "index": 3}, {"image": text(picture(rng))}, {"latent": text(latent.getvalue())}]
    options: dict[str, Any] = {"points": points, "method": ("slerp", "lerp")[rng.integers(2)]}
    if media in ("image/gif", "image/apng") or rng.random() < 0.7:
        options |= {"frames": frames, "loop": bool(rng.integers(2))}
    else:
        frames = 6
        options["grid"] = {"rows": 2, "cols": 3}
    return Case(f"interpolate {media}", post("/latent-interpolate", options, media), check=shown(media, frames))


def arithmetic(rng: Rng) -> Case:
    terms = [{"seed": int(seed), "weight": float(rng.uniform(-2, 2))} for seed in rng.integers(2**32, size=3)]
    return Case("arithmetic", post("/latent-arithmetic", {"terms": terms}), check=shown("application/json", 1))


def score(rng: Rng) -> Case:
    pictures = [picture(rng) for _ in range(rng.integers(1, 4))]
    body, kind = form([("image", each) for each in pictures])

    def check(answer: Answer) -> None:
        assert len(json.loads(answer.body)["images"]) == len(pictures)

    return Case("score", request("/score", body, {"Content-Type": kind}), check=check)


def stream(rng: Rng) -> Case:
    n, steps = int(rng.integers(1, 4)), int(rng.integers(1, 300))
    options = {"n": n, "steps": steps, "record": [0, steps]}

    def check(answer: Answer) -> None:
        events = [line for line in answer.body.decode().splitlines() if line.startswith("event:")]
        assert events[-1] == "event: done", events[-1]
        assert events.count("event: step") == 2 * n, events

    return Case("stream", post("/generate", options, "text/event-stream"), check=check)


def ask(rng: Rng) -> Case:
    paths = ("/models", "/models/mnist", "/models/mnist/3", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs")
    path = paths[rng.integers(len(paths))]
    return Case(f"GET {path}", request(path, method="GET"))


def bad(rng: Rng) -> Case:
    """A request that must be rejected with a certain status, and must not harm the service."""
    cases = (*_wrong_json(), *_wrong_pictures(rng), *_wrong_http(), oversized(rng), slow_body(rng), damaged(rng))
    return cases[rng.integers(len(cases))]


def oversized(rng: Rng) -> Case:
    """A body or a picture beyond its limit."""
    if rng.random() < 0.5:
        body = b" " * (BODY_BYTES + 1)
        return Case("body too large", request("/generate", body, _JSON), frozenset({413}))
    large = io.BytesIO()
    Image.new("L", (PIXELS // 100, 101)).save(large, "PNG")
    data = request("/project", large.getvalue(), {"Content-Type": "image/png"})
    return Case("picture too large", data, frozenset({413}))


def slow_body(_: Rng) -> Case:
    """A body whose last byte never comes."""
    return Case("slow body", request("/generate", b"{}", _JSON)[:-1], frozenset({408}))


def _wrong_json() -> list[Case]:
    result = [
        (400, "malformed", b'{"n": '),
        (400, "NaN", b'{"noise_scale": NaN}'),
        (404, "unknown model", b'{"model": "nobody"}'),
        (422, "unknown field", b'{"m": 1}'),
        (422, "out of range", b'{"n": 0}'),
        (422, "wrong type", b'{"n": "1"}'),
    ]
    return [Case(name, request("/generate", body, _JSON), frozenset({status})) for status, name, body in result]


def _wrong_pictures(rng: Rng) -> list[Case]:
    whole = picture(rng, size=(64, 64), mode="RGB")
    result = [
        (422, "no picture", b"this is not a picture"),
        (422, "half a picture", whole[: len(whole) // 2]),
    ]
    raw = {"Content-Type": "image/png"}
    return [Case(name, request("/project", body, raw), frozenset({status})) for status, name, body in result] + [
        Case("bad base64", post("/project", {"images": ["!!!"]}), frozenset({422})),
        Case("no array", post("/latent-interpolate", {"points": [{"latent": "AAAA"}, {"seed": 1}]}), frozenset({422})),
    ]


def _wrong_http() -> list[Case]:
    body = b'{"steps": 300000}'
    return [
        Case("not acceptable", post("/generate", {}, "text/csv"), frozenset({406})),
        Case("no such path", request("/nothing", method="GET"), frozenset({404})),
        Case("wrong method", request("/generate", method="GET"), frozenset({405})),
        Case("wrong type", request("/generate", b"a", {"Content-Type": "text/plain"}), frozenset({415})),
        Case("record as picture", post("/generate", {"record": [0]}, "image/png"), frozenset({422})),
        Case("bad timeout", request("/generate", b"", {"X-Request-Timeout": "soon"}), frozenset({400})),
        Case("too short", request("/generate", body, _JSON | {"X-Request-Timeout": "0.05"}), frozenset({504})),
        Case("not HTTP", b"\x00\x01\x02 this is not HTTP\r\n\r\n", frozenset({400})),
    ]


def damaged(rng: Rng) -> Case:
    """A form with random bytes changed: any 200 or 4xx is allowed."""
    body, kind = form([("image", picture(rng)), ("strength", b"0.5")])
    changed = bytearray(body)
    for place in rng.integers(len(changed), size=rng.integers(1, 20)):
        changed[place] = rng.integers(256)
    data = request("/project", bytes(changed), {"Content-Type": kind})
    return Case("damaged form", data, frozenset({200, 400, 413, 422}))


def post(path: str, options: Mapping[str, Any], accept: str = "application/json") -> bytes:
    return request(path, json.dumps(options).encode(), {"Accept": accept, "Content-Type": "application/json"})


def form(parts: list[tuple[str, bytes]]) -> tuple[bytes, str]:
    """The body of a multipart form, and its content type; ``image`` parts are files."""
    edge, body = "edge-of-a-part", b""
    for name, content in parts:
        file = '; filename="a"' if name == "image" else ""
        body += f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
    return body + f"--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def picture(rng: Rng, size: tuple[int, int] | None = None, mode: str | None = None) -> bytes:
    """A random image, with random size and mode unless given, and in a random format."""
    width, height = size or (int(rng.integers(1, 80)), int(rng.integers(1, 80)))
    chosen = mode or _MODES[rng.integers(len(_MODES))]
    noise = rng.integers(256, size=(height, width), dtype=np.uint8)
    result = Image.fromarray(noise)
    result = Image.fromarray(noise.astype(np.uint16) * 257) if chosen == "I;16" else result.convert(chosen)
    kinds = ["PNG"] + ["JPEG"] * (chosen in ("L", "RGB")) + ["WEBP"] * (chosen in ("RGB", "RGBA"))
    data = io.BytesIO()
    result.save(data, kinds[rng.integers(len(kinds))])
    return data.getvalue()


def shown(media: str, n: int) -> Callable[[Answer], None]:
    """A check that an answer contains ``n`` images in this format."""

    def check(answer: Answer) -> None:
        if media in ("application/json", "*/*"):
            images = json.loads(answer.body)["images"]
            assert len(images) == n, f"{len(images)} images for {n}"
            assert all(base64.b64decode(each["data"]) for each in images)
        elif media == "application/x-npy":
            rows = np.load(io.BytesIO(answer.body))
            assert len(rows) == n, f"{len(rows)} rows for {n}"
            assert np.isfinite(rows).all(), "a row is not finite"
        else:
            with Image.open(io.BytesIO(answer.body)) as result:
                result.load()

    return check
