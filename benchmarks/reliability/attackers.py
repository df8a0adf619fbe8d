"""Attacks that one client without a key can make.

python -m benchmarks.reliability.attackers NAME PORT SECONDS
"""

import asyncio
import contextlib
import gzip
import io
import itertools
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

import uvloop
from PIL import Image

from benchmarks.harness.processes import HOST
from benchmarks.load_generator.load import request
from benchmarks.load_generator.traffic import form

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_PART: Final = 1 << 16
_BODY: Final = 16 << 20
_NICENESS: Final = 10  # attackers compete for the service, not for the cores of a shared machine


async def on_connections(port: int, end: float, count: int, talk: Talk, *, pause_s: float = 0.05) -> None:
    """Talk on ``count`` connections at once, again and again until ``end``."""

    async def again() -> None:
        while time.monotonic() < end:
            writer: asyncio.StreamWriter | None = None
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(end - time.monotonic()):
                    reader, writer = await asyncio.open_connection(HOST, port)
                    await talk(reader, writer)
            if writer is not None:
                writer.transport.abort()
            await asyncio.sleep(pause_s)

    await asyncio.gather(*(again() for _ in range(count)))


def sending(start: bytes, part: bytes) -> Talk:
    """Send ``start``, then ``part`` without end, and read nothing."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(part)
            await writer.drain()

    return talk


def asking(data: bytes) -> Talk:
    """Send a request, and read until the service closes, or for two seconds."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(2):
            while await reader.read(_PART):
                pass

    return talk


def holding(*parts: bytes) -> Talk:
    """Send one of the parts in turn, and wait until the service closes."""
    turns = itertools.cycle(parts)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(next(turns))
        while await reader.read(_PART):
            pass

    return talk


async def trickling(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send half of a body of 16 MiB at once, and the rest slowly."""
    writer.write(request("/project", b"", {"Content-Type": "image/png"}).replace(b"Length: 0", b"Length: %d" % _BODY))
    for _part in range(_BODY // 2 // _PART):
        writer.write(bytes(_PART))
        await writer.drain()
    while True:
        writer.write(bytes(1024))
        await writer.drain()
        await asyncio.sleep(0.5)


def gzip_index() -> bytes:
    body = gzip.compress(b'{"points":[' + b"{}," * 5_000_000 + b"{}]}", 9)
    return request("/v2/repository/index", body, {"Content-Encoding": "gzip", "Content-Type": "application/json"})


def large_form() -> bytes:
    """64 pictures of 16 Mpx in one form."""
    data = io.BytesIO()
    Image.new("RGBA", (4000, 4000)).save(data, "PNG", compress_level=9)
    body, kind = form([("image", data.getvalue())] * 64)
    return request("/project", body, {"Content-Type": kind, "X-Request-Timeout": "2"})


def empty_segments() -> bytes:
    """A JPEG of 12 MB that consists of empty segments."""
    body = b"\xff\xd8" + b"\xff\xe1\x00\x02" * 3_000_000 + b"\xff\xd9"
    return request("/project", body, {"Content-Type": "image/jpeg"})


_HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
ATTACKS: Final[dict[str, Callable[[int, float], Awaitable[None]]]] = {
    "endless header": lambda port, end: on_connections(
        port, end, 4, sending(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", b"b" * _PART)
    ),
    "endless URL": lambda port, end: on_connections(port, end, 4, sending(b"GET /", b"b" * _PART)),
    "pipelining": lambda port, end: on_connections(port, end, 4, sending(b"", _HEALTH * 2000)),
    "3000 silent, half-headed": lambda port, end: on_connections(
        port, end, 3000, holding(b"", b"GET / HTTP/1.1\r\nHost: x\r\n"), pause_s=1.0
    ),
    "slow 16 MiB bodies": lambda port, end: on_connections(port, end, 100, trickling, pause_s=5.0),
    "gzip index": lambda port, end: on_connections(port, end, 4, asking(gzip_index())),
    "64 x 16 Mpx form": lambda port, end: on_connections(port, end, 2, asking(large_form())),
    "empty segments": lambda port, end: on_connections(port, end, 2, asking(empty_segments())),
}


def main(name: str, port: str, seconds: str) -> None:
    os.nice(_NICENESS)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    async def attack() -> None:
        await ATTACKS[name](int(port), time.monotonic() + float(seconds))

    uvloop.run(attack())


if __name__ == "__main__":
    main(*sys.argv[1:])
