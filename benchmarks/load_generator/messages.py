"""Whole HTTP/1.1 requests as bytes, and the images, arrays and forms in them."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from PIL import Image

from benchmarks.harness.processes import HOST

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
NPY: Final = "application/x-npy"
HEADER_LENGTH: Final = "Inference-Header-Content-Length"


def request(path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, method: str = "POST") -> bytes:
    """A whole HTTP/1.1 request."""
    fields = {"Host": HOST, **(headers or {})}
    if body or method == "POST":
        fields["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def get(path: str) -> bytes:
    return request(path, method="GET")


def post(path: str, options: Mapping[str, Any], accept: str = JSON) -> bytes:
    """A JSON body."""
    return request(path, json.dumps(options).encode(), {"Accept": accept, "Content-Type": JSON})


def upload(path: str, image: bytes, accept: str = "image/png", media: str = "image/png") -> bytes:
    """An image as the body."""
    return request(path, image, {"Accept": accept, "Content-Type": media})


def form(parts: Sequence[tuple[str, bytes]]) -> tuple[bytes, str]:
    """The body of a multipart form, and its content type; `image` and `mask` parts are files."""
    edge, body = "edge-of-a-part", b""
    for name, content in parts:
        file = '; filename="a"' if name in ("image", "mask") else ""
        body += f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
    return body + f"--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"


def post_form(path: str, parts: Sequence[tuple[str, bytes]], accept: str = JSON) -> bytes:
    body, media = form(parts)
    return request(path, body, {"Accept": accept, "Content-Type": media})


def text(content: bytes) -> str:
    """Base64."""
    return base64.b64encode(content).decode()


def npy(array: Any) -> bytes:
    """The array as an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


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
