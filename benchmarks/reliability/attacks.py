"""What one caller does to deny the others: the attacks that `fairness` measures."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final

import numpy as np
import uvloop
from PIL import Image

from benchmarks.harness.processes import HOST, raise_file_limit, serving_processes
from benchmarks.load_generator.fetch import fetch
from benchmarks.load_generator.messages import (
    EVENTS,
    JSON,
    get,
    post,
    post_form,
    request,
    upload,
    with_headers,
)
from benchmarks.reliability.cases import Case, Rng, disconnecting, oversized, slow_body
from benchmarks.reliability.hostile_inputs import (
    avif_of_items,
    endless_tiff,
    hostile,
    tiff_of_pages,
)
from tests.contract.data import b64
from tests.helpers.pictures import save

PART: Final = 1 << 16
BODY: Final = 16 << 20
NICENESS: Final = 10  # attackers compete for the service, not for the cores of a shared machine


@dataclass(frozen=True, slots=True)
class Attacker:
    """The caller that attacks a service, until ``end`` in `time.monotonic`."""

    port: int
    service_pid: int
    source: str = HOST  # its address
    headers: Mapping[str, str] = field(default_factory=dict)
    end: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)

    def signed(self, data: bytes) -> bytes:
        """A request, or the beginning of one, with the headers of this caller."""
        return with_headers(data, self.headers) if b"\r\n" in data else data

    async def connect(
        self, receive_bytes: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection; the system buffers at most ``receive_bytes`` of answers, or the
        default if that is 0.
        """
        connection = socket.socket()
        connection.setblocking(False)
        if receive_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.bind((self.source, 0))
        await asyncio.get_running_loop().sock_connect(connection, (HOST, self.port))
        return await asyncio.open_connection(sock=connection, limit=receive_bytes or PART)

    async def read(self, reader: asyncio.StreamReader, most: int) -> bytes:
        """Read a part of an answer; raises EOFError at the end of the connection."""
        data = await reader.read(most)
        if not data:
            raise EOFError
        if data.startswith(b"HTTP/1.1 "):
            self.statuses[data[9:12].decode("latin-1")] += 1
        return data


Talk = Callable[[Attacker, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Begin = Callable[[Attacker], Coroutine[Any, Any, None]]


def on(count: int, talk: Talk, *, pause_s: float = 0.05, receive_bytes: int = 0) -> Begin:
    """Talk on ``count`` connections at once, again and again."""

    async def again(attacker: Attacker) -> None:
        while time.monotonic() < attacker.end:
            writer: asyncio.StreamWriter | None = None
            with contextlib.suppress(OSError, EOFError):
                async with asyncio.timeout(attacker.end - time.monotonic()):
                    reader, writer = await attacker.connect(receive_bytes)
                    await talk(attacker, reader, writer)
            if writer is not None:
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            await asyncio.sleep(pause_s)

    async def begin(attacker: Attacker) -> None:
        await asyncio.gather(*(again(attacker) for _ in range(count)))

    return begin


def sending(start: bytes, part: bytes, pause_s: float = 0.0) -> Talk:
    """Send ``start``, then ``part`` without end, and read nothing."""

    async def talk(
        attacker: Attacker, _: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        signed = attacker.signed(start)
        for place in range(0, len(signed), PART):
            writer.write(signed[place : place + PART])
            await writer.drain()
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return talk


def waiting(*parts: bytes, seconds: float = 3600.0, is_slow: bool = False) -> Talk:
    """Send one of the parts in turn, and read until the service closes or reports an error, or for
    so long.

    A slow reader takes 1 KiB a second.
    """
    turns = itertools.cycle(parts)

    async def talk(
        attacker: Attacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(attacker.signed(next(turns)))
        async with asyncio.timeout(seconds):
            while True:
                if (await attacker.read(reader, 1024 if is_slow else PART)).startswith(
                    (b"HTTP/1.1 4", b"HTTP/1.1 5")
                ):
                    return
                await asyncio.sleep(1.0 if is_slow else 0.0)

    return talk


def asking(*requests: bytes) -> Talk:
    """Send the requests in turn, the next one as soon as something of the answer has come."""

    async def talk(
        attacker: Attacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for data in itertools.cycle(requests):
            writer.write(attacker.signed(data))
            await attacker.read(reader, PART)

    return talk


def once(*requests: bytes, timeout_s: float = 60.0) -> Begin:
    """Send the requests one after another, and wait for each answer, or leave."""

    async def begin(attacker: Attacker) -> None:
        for data in requests:
            with contextlib.suppress(OSError):
                answer = await fetch(attacker.port, attacker.signed(data), timeout_s=timeout_s)
                attacker.statuses[str(answer.status)] += 1

    return begin


def from_addresses(count: int, begin_one: Begin) -> Begin:
    """The same attack from so many addresses."""

    async def begin(attacker: Attacker) -> None:
        sources = (f"127.0.1.{number}" for number in range(1, count + 1))
        await asyncio.gather(*(begin_one(replace(attacker, source=source)) for source in sources))

    return begin


async def stop_process(attacker: Attacker) -> None:
    """Stop one of the processes of the service, as a driver that hangs would."""
    await stopped(serving_processes(attacker.service_pid)[0], attacker.end - time.monotonic())


async def stopped(pid: int, seconds: float) -> None:
    """Stop a process for so long."""
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def large_form(count: int) -> bytes:
    return post_form(
        "/project", [("image", save(Image.new("RGBA", (4000, 4000)), compress_level=9))] * count
    )


def empty_segments() -> bytes:
    """A JPEG of 12 MB."""
    return upload(
        "/project", b"\xff\xd8" + b"\xff\xe1\x00\x02" * 3_000_000 + b"\xff\xd9", media="image/jpeg"
    )


def long_stream(n: int) -> bytes:
    return post("/generate", {"model": "fashion_mnist", "n": n, "steps": 300_000}, EVENTS)


def recorded(accept: str) -> bytes:
    """A small request with an answer of 20 MiB."""
    options = {"model": "avatars64", "n": 64, "steps": 4, "record": [1, 2, 3, 4], "format": "npy"}
    return post("/generate", options, accept)


def unload(headers: Mapping[str, str]) -> bytes:
    """What a page of another site can make a browser send."""
    return request(
        "/v2/repository/models/fashion_mnist/unload", b"{}", {"Content-Type": JSON, **headers}
    )


def of_scans(
    height: int, width: int, count: int = 1, accept: str = "image/png", *, timeout_s: float = 30.0
) -> bytes:
    """Grey pages of a size for the model that takes any, as a form."""
    file = save(Image.new("L", (width, height), 200))
    data = post_form("/project", [("model", b"scans"), *[("image", file)] * count], accept)
    return with_headers(data, {"X-Request-Timeout": f"{timeout_s:g}"})


def impossible(width: int) -> bytes:
    """An inference on a row that is as wide as nothing is, of one value."""
    tensor = {"name": "x", "shape": [1, 1, 1, width], "datatype": "FP32", "data": [0]}
    return post("/v2/models/scans/infer", {"inputs": [tensor]})


def bad_clients(count: int) -> Begin:
    """A quarter each is slow, disconnects, sends too much, or sends hostile requests, whatever the
    answers are.
    """

    async def bad_client(attacker: Attacker, rng: Rng, make: Callable[[Rng], Case]) -> None:
        while time.monotonic() < attacker.end:
            case = make(rng)
            with contextlib.suppress(OSError):
                await fetch(attacker.port, case.data, timeout_s=case.leave_after_s or 1.0)
            await asyncio.sleep(0.5)

    async def begin(attacker: Attacker) -> None:
        kinds = itertools.cycle((slow_body, disconnecting, oversized, hostile))
        rngs = np.random.default_rng(0).spawn(count)
        await asyncio.gather(*map(bad_client, itertools.repeat(attacker), rngs, kinds))

    return begin


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack, the service that it needs, and what it may cost at most; see
    `benchmarks.reliability.costs`.

    Limits are by column: `cpu_s`, `mib` and `left_mib` of the service; `wait_s`, how much longer
    the ``probe`` of another caller takes at most than without the attack; `wait_units`, the same in
    the median, in times of ``unit``.
    """

    make: Callable[[], Begin]
    limits: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    probe: Sequence[bytes] = ()  # requests, one after another
    unit: Sequence[bytes] = ()
    settle_s: float = 0.0  # seconds from its begin in which the service may do what it likes


GENERATORS: Final = ("mnist", "fashion_mnist", "avatars64")
A4: Final = (3508, 2480)  # (H, W) at 300 dpi
LITTLE: Final = post("/generate", {"model": "mnist", "seed": 1, "steps": 1})
FEW_MODELS: Final = {"IGN_MODEL_MEMORY_MIB": "80", "IGN_DEVICE": "cpu"}
LONG_STREAM: Final = {"model": "avatars64", "steps": 100_000, "tolerance": 1e-300}
BOUNDED: Final[dict[str, Attack]] = {
    "64 endless TIFFs in JSON": Attack(
        lambda: once(post("/project", {"images": [b64(endless_tiff())] * 64, "model": "scans"})),
        {"cpu_s": 0.3},
    ),
    "16 TIFFs of 500 pages": Attack(
        lambda: once(*[upload("/project", tiff_of_pages(500), media="image/tiff")] * 16),
        {"cpu_s": 0.3},
    ),
    "16 AVIFs of 2000 items": Attack(
        lambda: once(
            *[upload("/project?model=scans", avif_of_items(2000), media="image/avif")] * 16
        ),
        {"cpu_s": 0.3},
    ),
    "12 impossible shapes": Attack(
        lambda: once(*(impossible(16_000_000 - number) for number in range(12))),
        {"cpu_s": 0.2, "left_mib": 20},
    ),
    "a stream of 40 lines": Attack(
        lambda: once(of_scans(1, 16_384, 40, EVENTS), timeout_s=20.0),
        {"mib": 400, "left_mib": 50},
    ),
    "100 pages that miss their deadline": Attack(
        lambda: once(*(of_scans(*A4, timeout_s=0.5 + 0.25 * (n % 10)) for n in range(100))),
        {"left_mib": 50},
    ),
    "a stream of pages": Attack(
        lambda: on(
            1, waiting(with_headers(of_scans(2339, 1654, 1, EVENTS), {"Connection": "close"}))
        ),
        {"wait_units": 1.5},
        probe=[of_scans(90, 90)],
        unit=[of_scans(1200, 1200)],
    ),
    "a stream while few models are open": Attack(
        lambda: on(1, waiting(post("/generate", LONG_STREAM, EVENTS))),
        {"wait_s": 3.0},
        FEW_MODELS,
        probe=[LITTLE],
    ),
    "models in turn while few are open": Attack(
        lambda: on(
            8, asking(*(post("/generate", {"model": name, "steps": 1}) for name in GENERATORS))
        ),
        {"wait_s": 3.0},
        FEW_MODELS,
        probe=[LITTLE],
    ),
    "wrong bodies of 40 callers beside a 404": Attack(
        lambda: from_addresses(40, on(1, asking(post("/generate", {"images": [0] * 17_000})))),
        {"wait_s": 1.0},
        probe=[get("/nothing"), LITTLE],
    ),
}
BAD_CLIENTS: Final = "96 bad clients"
HEAD: Final = b"GET / HTTP/1.1\r\nHost: x\r\n"
LONG_TYPE: Final = {"Content-Type": "multipart/form-data" + ";" * 60_000 + "boundary=a"}
WRONG_KEY: Final = {"Authorization": "Bearer wrong"}
ATTACKS: Final[dict[str, Attack]] = {
    "long Content-Type": Attack(lambda: on(4, asking(request("/project", b"", LONG_TYPE)))),
    "5000 empty images": Attack(lambda: on(4, asking(post("/project", {"images": [{}] * 5000})))),
    "long streams": Attack(lambda: on(300, waiting(long_stream(64), long_stream(1)))),
    "arrays read slowly": Attack(
        lambda: on(40, waiting(recorded("*/*"), is_slow=True), receive_bytes=4096)
    ),
    "streams read slowly": Attack(
        lambda: on(40, waiting(recorded(EVENTS), is_slow=True), receive_bytes=4096)
    ),
    "forms of 4 x 16 Mpx": Attack(lambda: on(24, waiting(large_form(4), seconds=30.0))),
    "one of two processes stops": Attack(
        lambda: stop_process,
        settings={"IGN_WORKERS": "2", "IGN_DEVICE": "cpu"},
        settle_s=15.0,
    ),
    "16 MiB less one byte": Attack(
        lambda: on(8, waiting(upload("/project", bytes(BODY - 1))[:-1]))
    ),
    "1100 bodies of one byte": Attack(
        lambda: on(1100, waiting(post("/generate", {})[:-1]), pause_s=1.0)
    ),
    "pages of other sites": Attack(
        lambda: on(
            1,
            asking(
                unload({"Origin": "http://a.example"}),
                unload({"Host": "a.example", "Sec-Fetch-Site": "same-origin"}),
            ),
        )
    ),
    "/metrics pipelined": Attack(lambda: on(8, asking(get("/metrics") * 16))),
    "429 on 60 connections": Attack(
        lambda: on(60, asking(post("/generate", {"steps": 1}))), settings={"IGN_RATE_LIMIT": "50/s"}
    ),
    "wrong keys": Attack(
        lambda: on(8, asking(with_headers(post("/generate", {"steps": 1}), WRONG_KEY)))
    ),
    "query of 60 KB": Attack(lambda: on(4, asking(upload("/project?" + "steps=1&" * 7500, b"-")))),
    "endless header": Attack(lambda: on(4, sending(HEAD + b"X-A: ", b"b" * PART))),
    "endless URL": Attack(lambda: on(4, sending(b"GET /", b"b" * PART))),
    "/healthz pipelined": Attack(lambda: on(4, sending(b"", get("/healthz") * 2000))),
    "3000 silent, half-headed": Attack(lambda: on(3000, waiting(b"", HEAD), pause_s=1.0)),
    "slow 16 MiB bodies": Attack(
        lambda: on(
            100,
            sending(upload("/project", bytes(BODY))[: BODY // 2], bytes(1024), 0.5),
            pause_s=5.0,
        )
    ),
    "64 x 16 Mpx form": Attack(lambda: on(2, waiting(large_form(64), seconds=2.0))),
    "empty segments": Attack(lambda: on(2, waiting(empty_segments(), seconds=2.0))),
    BAD_CLIENTS: Attack(lambda: bad_clients(96)),
}


@cache
def made(name: str) -> Begin:
    """An attack with what it sends, which may take seconds to make."""
    return ATTACKS[name].make()


def prepare(name: str) -> None:
    """Make in this process what the attack sends."""
    os.nice(NICENESS)
    raise_file_limit()
    made(name)


def attack(name: str, seconds: float, attacker: Attacker) -> Counter[str]:
    """Attack for so long; returns how often each status was received."""
    uvloop.run(made(name)(replace(attacker, end=time.monotonic() + seconds)))
    return attacker.statuses


def counted(statuses: Mapping[str, int]) -> str:
    """What an attacker received, such as `3×200 1×429`."""
    return " ".join(f"{count}×{status}" for status, count in sorted(statuses.items()))
