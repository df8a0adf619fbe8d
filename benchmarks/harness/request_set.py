"""A fixed set of requests that uses every endpoint, every input form and every response format."""

import base64
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import numpy as np
from PIL import Image

Json = dict[str, Any]

MODELS: Final = ("mnist", "fashion_mnist", "avatars64")
JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
FORMATS: Final = (JSON, "image/png", "image/webp", "image/jpeg", "application/x-npy")
HEADER_LENGTH: Final = "Inference-Header-Content-Length"


class Request(NamedTuple):
    """One request of the set."""

    name: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    method: str = "POST"


def get(path: str) -> Request:
    """A GET, named by its path."""
    return Request(f"GET {path}", path, method="GET")


def post(name: str, path: str, options: Json, accept: str = JSON) -> Request:
    """A JSON body."""
    return Request(name, path, json.dumps(options).encode(), {"Content-Type": JSON, "Accept": accept})


def raw(name: str, path: str, image: bytes, options: Json, accept: str = JSON, media: str = "image/png") -> Request:
    """One image as the body, with options in the query."""
    return Request(name, f"{path}?{urlencode(options)}", image, {"Content-Type": media, "Accept": accept})


def form(name: str, path: str, files: list[tuple[str, bytes]], options: Json, accept: str = JSON) -> Request:
    """A multipart form of files, as (field, content), and options."""
    parts = [(f'name="{key}"; filename="x.png"', content) for key, content in files]
    parts += [(f'name="{key}"', str(value).encode()) for key, value in options.items()]
    body = b"".join(b"--cut\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (h.encode(), c) for h, c in parts)
    headers = {"Content-Type": "multipart/form-data; boundary=cut", "Accept": accept}
    return Request(name, path, body + b"--cut--\r\n", headers)


def encoded(image: Image.Image, encoding: str = "PNG", **options: Any) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, encoding, **options)
    return buffer.getvalue()


def disc(number: int = 0, mode: str = "L", size: int = 40) -> Image.Image:
    """A light disc on dark; ``number`` moves it."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    grey = 255 * np.exp(-((x - 0.06 * number) ** 2 + (y + 0.04 * number) ** 2) * 30)
    if mode == "I;16":
        return Image.fromarray((grey * 257).astype(np.uint16))
    channels = np.stack([grey, grey[::-1], grey.T, 255 - grey / 2], axis=-1).astype(np.uint8)
    return Image.fromarray(channels, "RGBA").convert(mode)


def text(content: bytes) -> str:
    """Base64."""
    return base64.b64encode(content).decode()


def npy(array: Any) -> str:
    """The array as a base64 .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return text(buffer.getvalue())


def requests() -> Iterator[Request]:
    """The set, always the same and in the same order."""
    for model in MODELS:
        for made in (_generate, _project, _latents, _oip):
            for request in made(model):
                yield request._replace(name=f"{model} {request.name}")
        yield from (get(f"/models/{model}"), get(f"/models/{model}/1"))
    yield from _errors()
    for path in ("/models", "/healthz", "/readyz", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats"):
        yield get(path)
    yield post("repository index", "/v2/repository/index", {})


def _generate(model: str) -> Iterator[Request]:
    base: Json = {"model": model, "seed": 7}
    for accept in FORMATS:
        yield post(f"generate 1 {accept}", "/generate", base, accept)
        yield post(f"generate 5 {accept}", "/generate", base | {"n": 5}, accept)
    variants: list[Json] = [{"format": name, "n": 2} for name in ("jpeg", "webp", "npy")]
    variants += [{"offset": 3}, {"steps": 3}, {"noise_scale": 0.5}, {"noise_scale": 0}, {"score": True, "n": 3}]
    variants += [{"steps": 9, "tolerance": 0.05, "n": 4}, {"steps": 5, "record": [0, 1, 5], "n": 2}, {"n": 64}]
    variants += [{"steps": 6, "tolerance": 0.02, "record": [0, 2, 6], "score": True}, {"model": f"{model}/1"}]
    for options in variants:
        yield post(f"generate {options}", "/generate", base | options)
    for options in ({"n": 3}, {"steps": 6, "record": [0, 1, 6], "n": 2}, {"steps": 9, "tolerance": 0.05}):
        yield post(f"generate {options} events", "/generate", base | options, EVENTS)


def _project(model: str) -> Iterator[Request]:
    path, base, png = "/project", {"model": model}, [encoded(disc(number)) for number in range(3)]
    for mode in ("L", "RGB", "RGBA", "LA", "P", "1", "I;16"):
        yield raw(f"project {mode}", path, encoded(disc(1, mode)), base, "image/png")
    turned = Image.Exif()
    turned[0x0112] = 6  # the tag Orientation: a turn by 90°
    for encoding, media, how in (("JPEG", "image/jpeg", {"exif": turned}), ("WEBP", "image/webp", {"lossless": True})):
        yield raw(f"project {media}", path, encoded(disc(2, "RGB", 64), encoding, **how), base, "image/png", media)
    images, files = base | {"images": [text(image) for image in png]}, [("image", image) for image in png]
    for accept in FORMATS:
        yield post(f"project JSON {accept}", path, images, accept)
        yield form(f"project form {accept}", path, files, base, accept)
    half = encoded(Image.fromarray(np.where(np.mgrid[:40, :40][1] < 20, 255, 0).astype(np.uint8)))
    own = text(encoded(disc(0, size=28)))  # a mask may have the size of the model
    variants: list[Json] = [{"strength": 0.5}, {"resize": "crop"}, {"resize": "stretch"}, {"invert": True}]
    variants += [{"invert": False}, {"steps": 4, "tolerance": 0.1}, {"steps": 3, "record": [0, 3], "score": True}]
    variants += [{"mask": text(half), "steps": 2}, {"mask": own}, {"masks": [text(half), own, own]}]
    for number, options in enumerate(variants):
        yield post(f"project {number} {sorted(options)}", path, images | options)
    yield raw("project query", path, png[1], base | {"steps": 2, "record": "0,1", "score": "true"})
    yield form("project form mask", path, [*files, ("mask", half)], base | {"steps": 2})
    yield post("project events", path, images | {"steps": 4, "record": [0, 2]}, EVENTS)
    yield raw("score raw", "/score", png[1], base)
    yield form("score form", "/score", files, base | {"resize": "stretch"})
    yield post("score JSON", "/score", images | {"invert": False})


def _latents(model: str) -> Iterator[Request]:
    row = np.random.Generator(np.random.Philox(3)).standard_normal((1, 28, 28), np.float32)
    others: list[Json] = [{"image": text(encoded(disc()))}, {"latent": npy(row)}]
    seeds: list[Json] = [{"seed": 1}, {"seed": 2, "index": 3}]
    walk: Json = {"model": model, "points": seeds, "frames": 5}
    for accept in (*FORMATS, "image/gif", "image/apng"):
        yield post(f"interpolate {accept}", "/latent-interpolate", walk | {"loop": accept == "image/gif"}, accept)
    variants: list[Json] = [{"method": "lerp"}, {"loop": True}, {"points": [*seeds, *others], "steps": 2}]
    for options in variants:
        yield post(f"interpolate {sorted(options)}", "/latent-interpolate", walk | options)
    grid = {"model": model, "points": [*seeds, *others], "grid": {"rows": 2, "cols": 3}}
    for accept in (JSON, "image/png"):
        yield post(f"interpolate grid {accept}", "/latent-interpolate", grid, accept)
    terms: Json = {"model": model, "terms": [{"seed": 1}, {"seed": 2, "weight": -0.5}]}
    for accept in FORMATS:
        yield post(f"arithmetic {accept}", "/latent-arithmetic", terms, accept)
    for options in ({"normalize": False}, {"terms": [*seeds, *others]}, {"steps": 3}):
        yield post(f"arithmetic {sorted(options)}", "/latent-arithmetic", terms | options)


def _oip(model: str) -> Iterator[Request]:
    for suffix in ("", "/ready", "/config", "/stats", "/versions/1", "/versions/1/config"):
        yield get(f"/v2/models/{model}{suffix}")
    rows = np.random.Generator(np.random.Philox(5)).standard_normal((2, 1, 28, 28), np.float32)
    path: str = f"/v2/models/{model}/infer"
    tensor: Json = {"name": "x", "shape": list(rows.shape), "datatype": "FP32"}
    flat, binary = {"inputs": [tensor | {"data": rows.ravel().tolist()}]}, {"binary_data_output": True}
    yield post("infer flat", path, flat | {"id": "42"})
    yield post("infer nested", f"{path[:-6]}/versions/1/infer", {"inputs": [tensor | {"data": rows.tolist()}]})
    yield post("infer steps", path, flat | {"parameters": {"steps": 3}})
    yield post("infer binary answer", path, flat | {"parameters": binary})
    announced = tensor | {"parameters": {"binary_data_size": rows.nbytes}}
    head = json.dumps({"inputs": [announced], "parameters": binary}).encode()
    body, length = head + rows.tobytes(), {HEADER_LENGTH: str(len(head))}
    yield Request("infer binary", path, body, length)
    for coding, packed in (("gzip", gzip.compress(body, mtime=0)), ("deflate", zlib.compress(body))):
        yield Request(f"infer {coding}", path, packed, length | {"Content-Encoding": coding})
        yield Request(f"infer {coding} answer", path, body, length | {"Accept-Encoding": coding})


def _errors() -> Iterator[Request]:
    wrong: list[Json] = [{"n": 0}, {"n": 65}, {"seed": -1}, {"seed": "1"}, {"steps": 0}, {"record": [2, 1]}, {"x": 1}]
    wrong += [{"noise_scale": 3}, {"tolerance": 0}, {"format": "bmp"}, {"model": "absent"}, {"model": "mnist/9"}]
    for options in wrong:
        yield post(f"error generate {options}", "/generate", options)
    image, headers = text(encoded(disc())), {"Content-Type": JSON}
    for body in (b"{", b'{"noise_scale": NaN}', b"[]"):
        yield Request(f"error {body!r}", "/generate", body, headers)
    for name, value in (("Accept", "text/html"), ("X-Request-Timeout", "soon"), ("Content-Encoding", "gzip")):
        yield Request(f"error {name}", "/generate", b"{}", headers | {name: value})
    for options in ({}, {"images": ["!"]}, {"images": ["bm9uZQ=="]}, {"images": [image], "strength": 2}):
        yield post(f"error project {str(options)[:30]}", "/project", options)
    yield post("error mask size", "/project", {"images": [image], "mask": text(encoded(disc(size=9)))})
    yield raw("error side", "/project", encoded(Image.new("L", (20_000, 1))), {})
    yield raw("error media type", "/project", b"text", {}, media="text/plain")
    yield form("error form", "/project", [], {"steps": 1})
    yield post("error latent", "/latent-interpolate", {"points": [{"seed": 1}, {"latent": npy(np.zeros(3))}]})
    yield post("error sum", "/latent-arithmetic", {"terms": [{"seed": 1}, {"seed": 1, "weight": -1}]})
    yield raw("error score", "/score", encoded(disc()), {}, "image/png")
    yield from (get("/absent"), get("/generate"))
    for options in ({}, {"inputs": []}, {"inputs": [{"name": "z", "shape": [1], "datatype": "FP32", "data": [0]}]}):
        yield post(f"error infer {options}", "/v2/models/mnist/infer", options)
    yield post("error infer model", "/v2/models/absent/infer", {"inputs": []})
