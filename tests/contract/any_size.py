"""A model that takes images of any size, and every way in which a request gives it images."""

import json
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path

from benchmarks.load_generator.messages import (
    EVENTS,
    HEADER_LENGTH,
    JSON,
    NPY,
    post,
    post_form,
    request,
    upload,
    with_headers,
)
from service.api.negotiation import PICTURE_TYPES
from service.app import ENDPOINTS
from service.artifact.card import Tiles
from tests.contract.data import b64
from tests.contract.harness import PATIENCE_S, Service
from tests.helpers.onnx_models import write_model
from tests.helpers.pictures import chunk

Size = tuple[int, int]  # (H, W) in pixels
TILE = 64
LONGEST = 16_384
INFER = "/v2/models/tiles/infer"
_MOST_VALUES = 1 << 20  # of a tensor that is sent whole
_SENT = 1 << 22  # bytes of a file that are sent at most


def write_tiles(directory: Path) -> Path:
    """The folder of a model that takes and makes images of any size."""
    write_model(
        directory,
        "tiles",
        "1",
        (1, TILE, TILE),
        tiles=Tiles(overlap=8, smaller=(32,)),
        buckets=(1, 8),
    )
    return directory


@cache
def png(size: Size) -> bytes:
    """A black PNG; without most of its pixels if there are more than a service takes."""
    height, width = size
    pixels = zlib.compress(bytes((width + 1) * min(height, 1 + _SENT // width)), 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND")


Files = list[bytes]
Way = Callable[[Files], bytes]
"""Makes a request of image files."""


def raw(path: str, accept: str) -> Way:
    """One image as the body: the first."""
    return lambda files: upload(path, files[0], accept)


def form(path: str, accept: str, *fields: tuple[str, bytes]) -> Way:
    return lambda files: post_form(path, [*(("image", file) for file in files), *fields], accept)


def in_json(path: str, accept: str, **options: object) -> Way:
    return lambda files: post(path, {"images": [b64(file) for file in files]} | options, accept)


EDIT = (("prompt", b"-"),)
PICTURES = ("image/png", "image/webp", "image/jpeg", "image/tiff")
OFFERS = [
    (each.path, accept)
    for each in ENDPOINTS
    if each.bodies == PICTURE_TYPES
    for accept in each.formats
]
UPLOADS: dict[str, Way] = {
    **{f"{path}, raw, {accept}": raw(path, accept) for path, accept in OFFERS},
    **{f"{path}, form, {accept}": form(path, accept) for path, accept in OFFERS},
    **{
        f"{path}, JSON, {accept}": in_json(path, accept)
        for path, accept in OFFERS
        if accept in (JSON, EVENTS)
    },
    "/project, JSON of arrays": in_json("/project", JSON, format="npy"),
    "/project, recorded stream": in_json("/project", EVENTS, steps=2, record=[0, 1]),
    "/v1/images/edits": form("/v1/images/edits", JSON, *EDIT),
    "/v1/images/edits, stream": form(
        "/v1/images/edits", EVENTS, *EDIT, ("stream", b"true"), ("partial_images", b"2")
    ),
}
"""Every endpoint that takes images, in every kind of body, with every kind of answer."""


def generated(accept: str) -> Callable[[Size, int], bytes]:
    return lambda size, count: post(
        "/generate", {"height": size[0], "width": size[1], "n": count}, accept
    )


def inferred(*, is_binary: bool) -> Callable[[Size, int], bytes]:
    """An inference; a tensor that is large has the shape that it says, and one value."""

    def make(size: Size, count: int) -> bytes:
        values = count * size[0] * size[1]
        values = values if values <= _MOST_VALUES else 1
        tensor: dict[str, object] = {"name": "x", "shape": [count, 1, *size], "datatype": "FP32"}
        if not is_binary:
            return post(INFER, {"inputs": [tensor | {"data": [0] * values}]})
        head = json.dumps(
            {"inputs": [tensor | {"parameters": {"binary_data_size": 4 * values}}]}
        ).encode()
        return request(INFER, head + bytes(4 * values), {HEADER_LENGTH: str(len(head))})

    return make


def uploaded(way: Way) -> Callable[[Size, int], bytes]:
    return lambda size, count: way([png(size)] * count)


WAYS: dict[str, Callable[[Size, int], bytes]] = {
    **{name: uploaded(way) for name, way in UPLOADS.items()},
    **{f"/generate, {accept}": generated(accept) for accept in (*PICTURES, JSON, NPY, EVENTS)},
    f"{INFER}, JSON": inferred(is_binary=False),
    f"{INFER}, binary": inferred(is_binary=True),
}
"""All requests for images of a size: so many of them, but one in a raw body."""


SIDES = (1, TILE - 1, TILE, TILE + 1, LONGEST)
CASES = list(product(product(SIDES, SIDES), (1, 64)))
"""Sizes, and numbers of images."""


@contextmanager
def asking(service: Service, data: bytes, **headers: str) -> Iterator[socket.socket]:
    """A connection on which a request is sent, and nothing is read yet."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()} | {
        "Connection": "close"
    }
    with socket.create_connection(service.address, PATIENCE_S) as connection:
        connection.sendall(with_headers(data, fields))
        yield connection


def ask(service: Service, data: bytes, **headers: str) -> int:
    """The status of a request. Of the answer no more than a buffer is kept."""
    with asking(service, data, **headers) as connection:
        status = int(connection.recv(12, socket.MSG_WAITALL)[9:])
        buffer = bytearray(1 << 16)
        while connection.recv_into(buffer):
            pass
        return status
