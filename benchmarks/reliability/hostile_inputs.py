"""Hostile requests, each a pure function of a random generator: damaged bodies, images, JSON, HTTP
and headers.
"""

import json
import struct
import zlib
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any, Final

from PIL import Image

from benchmarks.harness.common import REF
from benchmarks.load_generator.messages import (
    EVENTS,
    HEADER_LENGTH,
    JSON,
    NPY,
    disc,
    post,
    post_form,
    request,
    upload,
)
from benchmarks.reliability.cases import GOOD, Case, Rng, image
from model_export.data.chance import choose
from service.api.negotiation import PICTURE_TYPES
from tests.contract.data import CALLS, b64
from tests.helpers.pictures import chunk, save

JSON_TYPE: Final = {"Content-Type": JSON}
PATHS: Final = (*CALLS, "/v2/models/mnist/infer")
VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    0.5,
    -0.0,
    1e-320,
    1e300,
    2**31,
    2**32,
    2**53 + 1,
    2**64,
    10**400,
    "",
    "a",
    "1",
    "\0",
    "\ud800",
    "é" * 300,
    "../../etc/passwd",
    "file:///etc/passwd",
    "data:image/png;base64,",
    "AAAA",
    [],
    {},
    [[]],
    [None],
    [0] * 300,
    ["a"] * 9,
    {"a": 1},
    {"seed": 1},
    [{"seed": 1}],
    [{"image": ""}] * 3,
    [[[[1]]]],
)
_ACCEPTS: Final = ("image/png", "image/webp", "image/gif", JSON, NPY, EVENTS, "*/*")
_NAMES: Final = """Accept Accept-Encoding Authorization Connection Content-Encoding Content-Length
    Content-Type Cookie Expect Forwarded Host Origin Range Sec-Fetch-Site traceparent TE Trailer
    Transfer-Encoding Upgrade X-Forwarded-For X-HTTP-Method-Override X-Request-ID X-Request-Timeout
    :path"""
_HEADERS: Final = (*_NAMES.split(), HEADER_LENGTH, "X Y", "a" * 300, "\xff")
_HEADERVALUES: Final = (
    "",
    " ",
    "0",
    "-1",
    "1",
    "9" * 40,
    "1e9",
    "nan",
    "*",
    "*/*;q=0",
    "a/b;q=1.0000",
    "chunked",
    "gzip",
    "identity",
    "gzip, chunked",
    "close",
    "keep-alive, upgrade",
    "100-continue",
    "h2c",
    "bytes=0-1",
    "null",
    "http://a",
    "a\tb",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "image/png; a=b",
    "text/plain",
    "Bearer x",
    "Basic !!",
    "\0",
    "\x01",
    "\xff\xfe",
    "a" * 9000,
    "127.0.0.1, ::1, unknown",
    f"00-{'0' * 32}-{'1' * 16}-01",
    "cross-site",
)
_HEADS: Final = (
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://a/healthz HTTP/1.1\r\nHost: b\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /models HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    b"GET /../../etc/passwd%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /page/..%2f..%2fetc HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: "
    b"chunked\r\n\r\n0\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
    b"chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\nX: y\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
    b"chunked\r\n\r\nfffffffffffffffff\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)
# the directory of a TIFF of one pixel
PIXEL: Final = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}


def hostile(rng: Rng) -> Case:
    case: Case = choose(rng, (damaged_request, wrong_options, bad_image, deep, raw_http, headers))(
        rng
    )
    return replace(case, expected=None)


def damaged(rng: Rng, data: bytes) -> bytes:
    """The bytes cut, flipped, repeated, inserted or removed at random places."""
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(len(data) + 1))
        before = data[:place]
        part = data[place : place + int(rng.integers(1, 40))]
        after = data[place:]
        flipped = bytes([after[0] ^ 1 << int(rng.integers(8))]) + after[1:] if after else b""
        repeated = part * int(rng.integers(1, 50)) + after
        inserted = rng.bytes(int(rng.integers(1, 20))) + after
        data = before + choose(rng, (b"", flipped, repeated, inserted, after[len(part) :])) or b"\0"
    return data


@cache
def images() -> dict[str, list[bytes]]:
    """Files that are damaged, large when they are decoded, or of very many parts.

    They stand below the code of the error of a service with the default limits; below "" are those
    that it decodes, or rejects as images of too many pages.
    """
    signature = b"\x89PNG\r\n\x1a\n"
    whole = [
        save(disc(size=32), form) for form in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
    ]

    def header(width: int, height: int, kind: int = 0) -> bytes:
        return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))

    def png(*chunks: bytes) -> bytes:
        return signature + b"".join(chunks) + chunk(b"IEND")

    zeros = zlib.compress(bytes(30_000_000), 9)
    pixels = chunk(b"IDAT", zlib.compress(bytes(29 * 28)))
    texts = chunk(b"zTXt", b"a\0\0" + zeros) + chunk(b"iCCP", b"a\0\0" + zeros)
    return {
        "": [
            png(header(28, 28), chunk(b"IDAT", zeros)),
            png(header(28, 28, kind=3), chunk(b"PLTE", b"\0" * 5), pixels),
            tiff_of_pages(500),
        ],
        "image_too_large": [
            png(header(2**31 - 1, 2**31 - 1), pixels),
            png(header(16_385, 1), pixels),
            b"RIFF"
            + struct.pack("<I", 30)
            + b"WEBPVP8X"
            + struct.pack("<I", 10)
            + b"\x02\0\0\0"
            + b"\xff" * 6,
            b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;",
            tiff(PIXEL | {256: 60_000, 257: 60_000, 278: 60_000}),
        ],
        "undecodable_image": [
            *(data[: len(data) // 2] for data in whole),
            whole[0][:45] + b"\xff\xff\xff\xff" + whole[0][49:],
            signature,
            png(header(0, 28), pixels),
            png(header(16_000, 15), pixels),
            png(header(400, 400), texts, pixels),
            png(header(28, 28), chunk(b"IDAT") * 60_000, pixels),
            png(header(28, 28), header(4000, 4000), pixels),
            b"\xff\xd8" + b"\xff\xe1\x00\x02" * 60_000 + b"\xff\xd9",
            b"GIF89a" + b"\xff" * 40,
            b"GIF89a\x10\0\x10\0\0\0\0" + b"!\xfe\0" * 60_000,
            b"II*\0" + b"\xff" * 100,
            b"II+\0\x08\0\0\0" + bytes(40),  # BigTIFF
            tiff({256: 9, 257: 9, 258: 8, 262: 1, 322: 1 << 16, 323: 1 << 16, 324: 8, 325: 1}),
            tiff(PIXEL | {256: 9, 257: 9, 259: 5, 278: 9}, following=8),
            endless_tiff(),
            avif_of_items(2000),
            b"\0\0\0\x1cftypheic" + bytes(40),
            b"BM"
            + bytes(12)
            + struct.pack("<IiiHHII", 40, 1 << 30, -(1 << 31), 1, 8, 1, 0)
            + bytes(16),
            small_avif(3000, 16),
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"hello",
        ],
    }


def tiff(tags: dict[int, int], following: int = 0) -> bytes:
    """A TIFF of one directory, which may be followed by another one; its pixels begin at its own
    start.
    """
    return struct.pack("<2sHI", b"II", 42, 8) + directory(tags, following)


def directory(tags: dict[int, int], following: int) -> bytes:
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)


def endless_tiff() -> bytes:
    """A TIFF of 62 bytes: its directory, of a strip without bytes, is followed by itself."""
    return tiff({256: 1, 257: 1, 273: 0, 279: 0}, following=8)


def tiff_of_pages(count: int) -> bytes:
    """A TIFF of so many pages of a pixel."""
    size = len(directory(PIXEL, 0))
    first = 10
    pages = (
        directory(PIXEL, first + size * number if number < count else 0)
        for number in range(1, count + 1)
    )
    return struct.pack("<2sHIH", b"II", 42, first, 0) + b"".join(pages)


def avif_of_items(count: int) -> bytes:
    """An AVIF that lists so many images of a byte."""
    size = 16 + 14 * count  # of the list
    head = struct.pack(">I4sxxxxI4sxxxxBBH", 12 + size, b"meta", size, b"iloc", 0x44, 0, count)
    return (
        bytes.fromhex("00000014667479706176696600000000")
        + b"mif1"
        + head
        + struct.pack(">HHHII", 0, 0, 1, 0, 1) * count
    )


def small_avif(side: int, stated: int) -> bytes:
    """An AVIF that states another side than it has."""
    data = bytearray(save(Image.new("L", (side, side)), "AVIF"))
    place = data.index(b"ispe") + 8
    data[place : place + 8] = struct.pack(">II", stated, stated)
    return bytes(data)


def damaged_image(rng: Rng, data: bytes) -> bytes:
    """A hostile file instead of the image, or the image damaged: mostly in its head, where its
    structure is.
    """
    if rng.random() < 0.1:
        return bytes(choose(rng, list(chain(*images().values()))))
    if data.startswith(b"\x89PNG") and rng.random() < 0.5:
        return repaired(rng, data)
    if data.startswith(b"II*\0") and rng.random() < 0.5:  # its directory is at the end
        place = int.from_bytes(data[4:8], "little")
        return data[:place] + overwritten(rng, data[place:])
    return overwritten(rng, data) if rng.random() < 0.5 else damaged(rng, data)


def overwritten(rng: Rng, data: bytes) -> bytes:
    """Numbers in the first bytes replaced, so that all places stay where they are."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(max(1, min(len(data), 400))))
        value = choose(rng, (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
        size = choose(rng, (1, 2, 4))
        changed[place : place + size] = (value & (256**size - 1)).to_bytes(
            size, choose(rng, ("little", "big"))
        )
    return bytes(changed)


def repaired(rng: Rng, data: bytes) -> bytes:
    """A PNG with damaged chunks whose checksums are right."""
    parts = [data[:8]]
    start = 8
    while start + 12 <= len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        content = data[start + 8 : start + 8 + size]
        if content and rng.random() < 0.5:
            content = damaged(rng, content)
        parts += [chunk(kind, content)] * int(rng.integers(1, 3) if rng.random() < 0.2 else 1)
        start += size + 12
    return b"".join(parts)


def parts(rng: Rng) -> tuple[str, dict[str, str], bytes]:
    """Path, headers without the length, and body of a good request."""
    head, _, body = choose(rng, GOOD).partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines if "Content-Length" not in line)
    return first.split()[1], fields, body


def damaged_request(rng: Rng) -> Case:
    """A good request with a damaged body: JSON, images, forms, latents and tensors."""
    path, fields, body = parts(rng)
    return Case("body", request(path, damaged(rng, body), fields))


def wrong_options(rng: Rng) -> Case:
    """A good JSON body with wrong or unknown options, for any endpoint and format."""
    path, fields, body = parts(rng)
    options = json.loads(body) if body.startswith(b"{") and body.endswith(b"}") else {}
    for _ in range(int(rng.integers(1, 4))):
        options[choose(rng, (*options, "extra", ""))] = choose(rng, VALUES)
    if rng.random() < 0.3:
        path = choose(rng, PATHS)
        fields |= {"Accept": choose(rng, _ACCEPTS)}
    return Case("JSON", request(path, json.dumps(options).encode(), fields | JSON_TYPE))


def deep(rng: Rng) -> Case:
    """JSON with very many or very deep values."""
    times = int(rng.integers(10, 100_000))
    part = choose(rng, (b"[", b'{"a":', b"{}", b'"', b"0,", b"\\u0000", b"1"))
    start = b'{"' + choose(rng, (b"images", b"points", b"n", b"inputs")) + b'":'
    return Case(
        "deep JSON", request(choose(rng, PATHS), start + part * times + b"]" * times, JSON_TYPE)
    )


def bad_image(rng: Rng) -> Case:
    """A bomb, or a damaged image, wherever an endpoint takes one."""
    data = damaged_image(rng, image(rng))
    how = rng.integers(3)
    if how == 0:
        media = choose(rng, (*PICTURE_TYPES, "image/svg+xml"))
        query = choose(
            rng, ("", "?steps=1", "?resize=crop&invert=true", "?mask=a", "?steps=&steps=2")
        )
        return Case("image", upload(choose(rng, ("/project", "/score")) + query, data, media=media))
    if how == 1:
        return Case(
            "image",
            post("/project", {"images": [b64(image(rng)), b64(data)], "masks": [b64(data)] * 2}),
        )
    return Case("image", post_form("/project", [("image", data), ("mask", data), ("steps", b"1")]))


def raw_http(rng: Rng) -> Case:
    head = bytes(choose(rng, _HEADS))
    if rng.random() < 0.7:
        head = damaged(rng, head)
    return Case("HTTP", head * int(rng.integers(1, 4)), may_close=True)


def headers(rng: Rng) -> Case:
    chosen = {
        choose(rng, _HEADERS): choose(rng, _HEADERVALUES) for _ in range(int(rng.integers(1, 5)))
    }
    method = choose(
        rng, ("POST", "POST", "GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "PROPFIND")
    )
    path = choose(
        rng,
        (
            *PATHS,
            "/models",
            f"/models/{REF}",
            "/v2/repository/models/none/load",
            "/docs",
            "/nothing",
        ),
    )
    data = b"" if method != "POST" else b"{}"
    return Case("headers", request(path, data, JSON_TYPE | chosen, method), may_close=True)
