"""Hostile requests, each a pure function of a random generator: pictures, JSON, forms, tensors, HTTP and headers."""

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np

from benchmarks.load_generator.load import request
from benchmarks.load_generator.traffic import Rng, form, picture, post, text

SETTINGS: Final = {
    "IGN_MAX_BODY_BYTES": str(1 << 20),
    "IGN_MAX_PIXELS": "250000",
    "IGN_MAX_REQUEST_PIXELS": "1000000",
    "IGN_MAX_IMAGES": "8",
    "IGN_MAX_STEPS": "50",
    "IGN_HEAD_TIMEOUT_S": "3",
    "IGN_BODY_TIMEOUT_S": "3",
    "IGN_ACCESS_LOG": "0",
}
"""Settings of the service with limits that some of the inputs exceed, and that keep each of them short."""

JSON_TYPE: Final = {"Content-Type": "application/json"}
PATHS: Final = ("/generate", "/project", "/latent-interpolate", "/latent-arithmetic", "/score")
INFER: Final = "/v2/models/mnist/infer"
LENGTH: Final = "Inference-Header-Content-Length"
_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 0.5, -0.0, 1e-320, 1e300, 2**31, 2**32, 2**53 + 1, 2**64, 10**400),
    *(
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
    ),
    *([], {}, [[]], [None], [0] * 300, ["a"] * 9, {"a": 1}, {"seed": 1}, [{"seed": 1}], [{"image": ""}] * 3, [[[[1]]]]),
)
_BODIES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("/generate", {"n": 2, "seed": 1, "steps": 2, "noise_scale": 1.0, "offset": 0, "format": "png", "record": [0, 1]}),
    ("/generate", {"tolerance": 0.1, "score": True, "model": "mnist"}),
    ("/project", {"images": ["AAAA"], "mask": "AAAA", "strength": 0.5, "invert": True, "resize": "fit", "steps": 1}),
    (
        "/latent-interpolate",
        {"points": [{"seed": 1}, {"seed": 2, "index": 3}], "frames": 3, "method": "slerp", "loop": True},
    ),
    (
        "/latent-interpolate",
        {"points": [{"seed": 1}, {"seed": 2}, {"seed": 3}, {"seed": 4}], "grid": {"rows": 2, "cols": 2}},
    ),
    ("/latent-arithmetic", {"terms": [{"seed": 1, "weight": 1.0}, {"seed": 2, "weight": -1.0}], "normalize": True}),
    ("/score", {"images": ["AAAA"], "model": "mnist"}),
)
_ACCEPTS: Final = (
    "application/json",
    "image/png",
    "image/webp",
    "image/gif",
    "application/x-npy",
    "text/event-stream",
    "*/*",
)
_HEADERS: Final = (
    *("Accept", "Accept-Encoding", "Authorization", "Connection", "Content-Encoding", "Content-Length", "Content-Type"),
    *("Cookie", "Expect", "Forwarded", "Host", "Inference-Header-Content-Length", "Origin", "Range", "Sec-Fetch-Site"),
    *("TE", "Trailer", "Transfer-Encoding", "Upgrade", "X-Forwarded-For", "X-HTTP-Method-Override", "X-Request-ID"),
    *("X-Request-Timeout", "traceparent", ":path", "a" * 300, "\xff", "X Y"),
)
_HEADER_VALUES: Final = (
    *("", " ", "0", "-1", "1", "9" * 40, "1e9", "nan", "*", "*/*;q=0", "a/b;q=1.0000", "chunked", "gzip", "identity"),
    *(
        "gzip, chunked",
        "close",
        "keep-alive, upgrade",
        "100-continue",
        "h2c",
        "bytes=0-1",
        "null",
        "http://a",
        "cross-site",
    ),
    *("multipart/form-data", "multipart/form-data; boundary=", "image/png; a=b", "text/plain", "Bearer x", "Basic !!"),
    *(
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "\x01",
        "\xff\xfe",
        "a" * 9000,
        "127.0.0.1, ::1, unknown",
        "a\tb",
        "\0",
    ),
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
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\nX: y\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)


@dataclass(frozen=True, slots=True)
class Input:
    """What a hostile client sends on one connection.

    Args:
        kind: its group.
        data: the bytes.
        may_close: whether a close without a response is right too, because the bytes need not be a whole request.
    """

    kind: str
    data: bytes
    may_close: bool = False


def hostile(rng: Rng) -> Input:
    """A random hostile request."""
    makers: tuple[Callable[[Rng], Input], ...] = (pictures, arrays, bodies, forms, tensors, raw_http, headers)
    return makers[rng.integers(len(makers))](rng)


def choose(rng: Rng, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def damaged(rng: Rng, data: bytes) -> bytes:
    """The bytes cut, flipped, repeated, inserted or removed at random places."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(len(changed) + 1))
        end = place + int(rng.integers(1, 40))
        how = rng.integers(5)
        if how == 0:
            del changed[place:]
        elif how == 1 and place < len(changed):
            changed[place] ^= 1 << int(rng.integers(8))
        elif how == 2:
            changed[place:place] = changed[place:end] * int(rng.integers(1, 50))
        elif how == 3:
            changed[place:place] = rng.bytes(int(rng.integers(1, 20)))
        else:
            del changed[place:end]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def bombs() -> tuple[bytes, ...]:
    """Small files that are large when they are decoded, or that have very many parts."""
    signature, end = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")

    def png(width: int, height: int, *chunks: bytes, kind: int = 0) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
        return signature + chunk(b"IHDR", header) + b"".join(chunks) + end

    zeros = zlib.compress(bytes(30_000_000), 9)
    pixels = chunk(b"IDAT", zlib.compress(bytes(29 * 28)))
    jpeg = b"\xff\xd8" + b"\xff\xe1\x00\x02" * 60_000 + b"\xff\xd9"
    return (
        png(28, 28, chunk(b"IDAT", zeros)),
        png(2**31 - 1, 2**31 - 1, pixels),
        png(0, 28, pixels),
        png(16_000, 15, pixels),
        png(400, 400, chunk(b"zTXt", b"a\0\0" + zeros), chunk(b"iCCP", b"a\0\0" + zeros), pixels),
        png(28, 28, chunk(b"IDAT", b"") * 60_000, pixels),
        png(28, 28, chunk(b"IHDR", struct.pack(">IIBBBBB", 4000, 4000, 8, 0, 0, 0, 0)), pixels),
        png(28, 28, chunk(b"PLTE", b"\0" * 5), pixels, kind=3),
        jpeg,
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xff" * 6,
        b"GIF89a" + b"\xff" * 40,
        b"II*\0" + b"\xff" * 100,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    )


def repaired(rng: Rng, data: bytes) -> bytes:
    """A PNG with damaged chunks whose checksums are right."""
    parts, start = [data[:8]], 8
    while start + 12 <= len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        kind, content = data[start + 4 : start + 8], data[start + 8 : start + 8 + size]
        if content and rng.random() < 0.5:
            content = damaged(rng, content)
        parts += [chunk(kind, content)] * int(rng.integers(1, 3) if rng.random() < 0.2 else 1)
        start += size + 12
    return b"".join(parts)


def bad_picture(rng: Rng) -> bytes:
    luck = rng.random()
    if luck < 0.15:
        return bytes(choose(rng, bombs()))
    data = picture(rng)
    if luck < 0.4 and data.startswith(b"\x89PNG"):
        return repaired(rng, data)
    return damaged(rng, data) if luck < 0.9 else data + picture(rng)


def pictures(rng: Rng) -> Input:
    data, how = bad_picture(rng), rng.integers(4)
    if how == 0:
        kind = choose(rng, ("image/png", "image/jpeg", "image/webp", "image/gif", "image/svg+xml"))
        query = choose(rng, ("", "?steps=1", "?resize=crop&invert=true", "?mask=a", "?steps=&steps=2"))
        return Input("picture", request(choose(rng, ("/project", "/score")) + query, data, {"Content-Type": kind}))
    if how == 1:
        return Input(
            "picture", post("/project", {"images": [text(picture(rng)), text(data)], "masks": [text(data)] * 2})
        )
    if how == 2:
        points = [{"seed": 1}, {"image": text(data)}]
        return Input("picture", post("/latent-interpolate", {"points": points, "frames": 2}))
    body, kind = form([("image", data), ("mask", data), ("steps", b"1")])
    return Input("picture", request("/project", body, {"Content-Type": kind}))


def arrays(rng: Rng) -> Input:
    stored = io.BytesIO()
    shape = (1, 28, 28) if rng.random() < 0.7 else choose(rng, ((28, 28), (1, 1, 28, 28), (0,), (1, 28, 29)))
    values = rng.standard_normal(shape) * choose(rng, (1, 1e3, 1e5, 1e30))
    kind = ("<f4", ">f4")[rng.integers(2)] if rng.random() < 0.7 else choose(rng, ("f8", "i4", "f2", "c8"))
    with np.errstate(all="ignore"):
        np.save(stored, values.astype(kind))
    data = stored.getvalue()
    if rng.random() < 0.5:
        data = damaged(rng, data)
    if rng.random() < 0.5:
        return Input(
            "latent", post("/latent-interpolate", {"points": [{"latent": text(data)}, {"seed": 1}], "frames": 2})
        )
    terms = [{"latent": text(data), "weight": choose(rng, (1, 10, -1e-300))}, {"seed": 1}]
    return Input("latent", post("/latent-arithmetic", {"terms": terms, "normalize": bool(rng.integers(2))}))


def bodies(rng: Rng) -> Input:
    path, options = choose(rng, _BODIES)
    options = dict(options)
    for _ in range(int(rng.integers(3))):
        options[choose(rng, (*options, "extra", ""))] = choose(rng, _VALUES)
    data = json.dumps(options).encode()
    luck = rng.random()
    if luck < 0.3:
        data = damaged(rng, data)
    elif luck < 0.4:
        deep = int(rng.integers(10, 100_000))
        part = choose(rng, (b"[", b'{"a":', b"{}", b'"', b"0,", b"\\u0000", b"1"))
        data = (
            b'{"'
            + choose(rng, (b"images", b"points", b"n", b"x"))
            + b'":'
            + part * deep
            + choose(rng, (b"", b"]" * deep))
        )
    return Input(
        "JSON", request(path, data, JSON_TYPE | ({"Accept": choose(rng, _ACCEPTS)} if rng.random() < 0.5 else {}))
    )


def forms(rng: Rng) -> Input:
    parts = [("image", picture(rng, (28, 28), "L")) for _ in range(int(rng.integers(1, 12)))]
    parts += [
        (choose(rng, ("steps", "n", "", "a" * 500, "resize", "mask", "strength")), rng.bytes(5)) for _ in range(2)
    ]
    body, kind = form(parts)
    if rng.random() < 0.8:
        body = damaged(rng, body)
    if rng.random() < 0.2:
        kind = choose(rng, (kind + "x", "multipart/form-data", "multipart/mixed; boundary=a", kind + "; charset=x"))
    return Input("form", request(choose(rng, ("/project", "/score", "/generate")), body, {"Content-Type": kind}))


def tensors(rng: Rng) -> Input:
    rows = rng.standard_normal((int(rng.integers(1, 3)), 1, 28, 28), np.float32)
    tensor: dict[str, Any] = {"name": "x", "shape": list(rows.shape), "datatype": "FP32"}
    if rng.random() < 0.5:
        tensor[choose(rng, (*tensor, "parameters", "data"))] = choose(rng, _VALUES)
    if rng.random() < 0.4:
        data = json.dumps({"inputs": [tensor | {"data": rows.ravel().tolist()}]}).encode()
        heads: dict[str, str] = {}
    else:
        values = rows.tobytes() if rng.random() < 0.7 else rng.bytes(rows.nbytes)
        head = json.dumps({"inputs": [{"parameters": {"binary_data_size": len(values)}} | tensor]}).encode()
        data, heads = head + values, {LENGTH: str(len(head) + int(rng.integers(-2, 3)) * int(rng.integers(2)))}
    if rng.random() < 0.5:
        data = damaged(rng, data)
    if rng.random() < 0.2:
        coding = choose(rng, ("gzip", "deflate", "br", "gzip, gzip"))
        data = choose(rng, (gzip.compress(data, 1), zlib.compress(data, 1), gzip_bomb(), data))
        heads |= {"Content-Encoding": coding}
    return Input("tensor", request(choose(rng, (INFER, INFER, "/v2/repository/index")), data, heads))


@cache
def gzip_bomb() -> bytes:
    return gzip.compress(b'{"inputs":[' + b"{}," * 5_000_000 + b"{}]}", 9)


def raw_http(rng: Rng) -> Input:
    head = bytes(choose(rng, _HEADS))
    if rng.random() < 0.7:
        head = damaged(rng, head)
    return Input("HTTP", head * int(rng.integers(1, 4)), may_close=True)


def headers(rng: Rng) -> Input:
    chosen = {choose(rng, _HEADERS): choose(rng, _HEADER_VALUES) for _ in range(int(rng.integers(1, 5)))}
    method = choose(rng, ("POST", "POST", "GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "PROPFIND"))
    path = choose(
        rng, (*PATHS, INFER, "/models", "/models/mnist/3", "/v2/repository/models/none/load", "/docs", "/nothing")
    )
    data = b"" if method != "POST" else b"{}"
    return Input("headers", request(path, data, JSON_TYPE | chosen, method), may_close=True)
