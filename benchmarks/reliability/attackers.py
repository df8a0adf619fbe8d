"""Attacks that one client without a key can make, and many clients that are slow, vanish, or send what is wrong.

    python -m benchmarks.reliability.attackers NAME PORT SECONDS [CLIENTS] [SEED]

A process of their own, so that they cannot delay good clients.
"""

import asyncio
import contextlib
import gzip
import itertools
import os
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import numpy as np
import uvloop
from PIL import Image

from benchmarks.harness.processes import HOST, raise_file_limit
from benchmarks.load_generator.fetch import ConnectionClosed, fetch
from benchmarks.load_generator.messages import encoded, get, post_form, request, upload
from benchmarks.load_generator.traffic import Rng, disconnecting, oversized, slow_body
from benchmarks.reliability.hostile_inputs import hostile

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

PART: Final = 1 << 16
BODY: Final = 16 << 20
NICENESS: Final = 10  # attackers compete for the service, not for the cores of a shared machine


async def on_connections(count: int, talk: Talk, port: int, end: float, pause_s: float = 0.05) -> None:
    """Talk on ``count`` connections at once, again and again until ``end``."""

    async def again() -> None:
        while time.monotonic() < end:
            writer: asyncio.StreamWriter | None = None
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                async with asyncio.timeout(end - time.monotonic()):
                    reader, writer = await asyncio.open_connection(HOST, port)
                    await talk(reader, writer)
            if writer is not None:
                writer.transport.abort()
            await asyncio.sleep(pause_s)

    await asyncio.gather(*(again() for _ in range(count)))


def sending(start: bytes, part: bytes, pause_s: float = 0.0) -> Talk:
    """Send ``start``, then ``part`` without end, and read nothing."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for place in range(0, len(start), PART):
            writer.write(start[place : place + PART])
            await writer.drain()
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return talk


def waiting(*parts: bytes, seconds: float = 3600.0) -> Talk:
    """Send one of the parts in turn, and read until the service closes, or for so long."""
    turns = itertools.cycle(parts)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(next(turns))
        async with asyncio.timeout(seconds):
            while await reader.read(PART):
                pass

    return talk


def gzip_index() -> bytes:
    body = gzip.compress(b'{"points":[' + b"{}," * 5_000_000 + b"{}]}", 9)
    return request("/v2/repository/index", body, {"Content-Encoding": "gzip", "Content-Type": "application/json"})


def large_form() -> bytes:
    """64 images of 16 Mpx in one form."""
    return post_form("/project", [("image", encoded(Image.new("RGBA", (4000, 4000)), compress_level=9))] * 64)


def empty_segments() -> bytes:
    """A JPEG of 12 MB that consists of empty segments."""
    return upload("/project", b"\xff\xd8" + b"\xff\xe1\x00\x02" * 3_000_000 + b"\xff\xd9", media="image/jpeg")


async def bad_clients(count: int, seed: int, port: int, end: float) -> None:
    """A quarter each is slow, disconnects, sends too much, or sends hostile requests, whatever the answers are."""
    makers = (slow_body, disconnecting, oversized, hostile)

    async def bad_client(rng: Rng, kind: int) -> None:
        while time.monotonic() < end:
            case = makers[kind % len(makers)](rng)
            with contextlib.suppress(OSError, ConnectionClosed):
                await fetch(port, case.data, leave_after_s=case.leave_after_s or 1.0)
            await asyncio.sleep(0.5)

    rngs = np.random.default_rng(seed).spawn(count)
    await asyncio.gather(*(bad_client(rng, kind) for kind, rng in enumerate(rngs)))


HEAD: Final = b"GET / HTTP/1.1\r\nHost: x\r\n"
HALF_A_BODY: Final = upload("/project", bytes(BODY))[: BODY // 2]
ATTACKS: Final[dict[str, Callable[[], Callable[[int, float], Awaitable[None]]]]] = {
    "endless header": lambda: partial(on_connections, 4, sending(HEAD + b"X-A: ", b"b" * PART)),
    "endless URL": lambda: partial(on_connections, 4, sending(b"GET /", b"b" * PART)),
    "pipelining": lambda: partial(on_connections, 4, sending(b"", get("/healthz") * 2000)),
    "3000 silent, half-headed": lambda: partial(on_connections, 3000, waiting(b"", HEAD), pause_s=1.0),
    "slow 16 MiB bodies": lambda: partial(on_connections, 100, sending(HALF_A_BODY, bytes(1024), 0.5), pause_s=5.0),
    "gzip index": lambda: partial(on_connections, 4, waiting(gzip_index(), seconds=2.0)),
    "64 x 16 Mpx form": lambda: partial(on_connections, 2, waiting(large_form(), seconds=2.0)),
    "empty segments": lambda: partial(on_connections, 2, waiting(empty_segments(), seconds=2.0)),
}
BAD_CLIENTS: Final = "bad clients"


def main(name: str, port: str, seconds: str, count: str = "1", seed: str = "0") -> None:
    os.nice(NICENESS)
    raise_file_limit()
    end = time.monotonic() + float(seconds)
    attack = partial(bad_clients, int(count), int(seed)) if name == BAD_CLIENTS else ATTACKS[name]()

    async def run() -> None:
        await attack(int(port), end)

    uvloop.run(run())


if __name__ == "__main__":
    main(*sys.argv[1:])
