"""What a request costs for each byte of it, at most: of those that make most rows and pixels, in
every form.

    python -m tests.slow.test_amplification     # prints the table

Limits of CPU time are multiplied by how slow this core is now.
"""

import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.harness.tables import table
from benchmarks.load_generator.messages import (
    EVENTS,
    JSON,
    NPY,
    disc,
    encoded,
    post,
    post_form,
    request,
    text,
    with_headers,
)
from tests.contract.harness import Service, bearer, serving, settings, write_keys
from tests.helpers import memory, watchdog
from tests.helpers.live import ROOT

LONG = 4096  # bytes
ACCEPTS = (JSON, NPY, EVENTS, "image/png", "image/webp", "image/jpeg", "image/gif")
PICTURE = encoded(disc(size=8))
LARGE_PICTURE = encoded(disc(size=1000))
RECORDED = {"model": "avatars64", "steps": 8, "record": list(range(1, 9)), "format": "npy"}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/generate": [{"n": 64, **RECORDED}],
    "/project": [
        {"images": [text(PICTURE)], **RECORDED},
        {"images": [text(LARGE_PICTURE)] * 16, "model": "avatars64", "score": True},
    ],
    "/latent-interpolate": [{"points": [{"seed": 0}] * 2, "frames": 256}],
    "/latent-arithmetic": [{"terms": [{"seed": 0}], "model": "avatars64", "scale": 32}],
    "/score": [
        {"images": [text(PICTURE)]},
        {"images": [text(PICTURE)] * 64},
        {"images": [text(LARGE_PICTURE)] * 16},
    ],
}
Cost = dict[str, float]  # ms, ms, MiB, s; in the table and in `LIMITS` for each KiB of a request
UNITS = ("loop CPU, ms", "codec CPU, ms", "memory, MiB", "time, s")
LIMITS = {  # three times what was measured; seconds: what the timeouts of a service allow
    "/generate, short": (300.0, 1800.0, 1200.0, 100.0),
    "/project, short": (20.0, 25.0, 30.0, 100.0),
    "/project, long": (0.6, 1.5, 2.3, 1.0),
    "/latent-interpolate, short": (150.0, 200.0, 150.0, 100.0),
    "/latent-arithmetic, short": (60.0, 1800.0, 800.0, 100.0),
    "/score, short": (15.0, 1.0, 5.0, 100.0),
    "/score, long": (1.2, 1.8, 2.0, 1.0),
    "any, short": (20.0, 1.0, 5.0, 100.0),
    "any, long": (1.0, 0.1, 0.5, 1.0),
    "no key, short": (9.0, 0.1, 3.0, 1.0),
    "no key, long": (0.1, 0.1, 0.1, 0.1),
}


class Meter:
    """Sends requests to a service in this process, and measures what each costs."""

    def __init__(self, service: Service) -> None:
        self._address = service.address
        self._loop = f"loop of {service.url}"

    def __call__(self, data: bytes) -> tuple[int, Cost]:
        """Status and cost."""
        memory.trim()
        memory.forget_peak()
        before = (cpu_ms(self._loop), cpu_ms("codec_"), memory.mib("VmRSS"), time.monotonic())
        with socket.create_connection(self._address, 30.0) as connection:
            connection.sendall(with_headers(data, {"Connection": "close"}))
            status = int(connection.recv(12)[9:])
            buffer = bytearray(1 << 16)
            with suppress(ConnectionResetError):  # a body that the service does not receive
                while connection.recv_into(buffer):
                    pass
        after = (cpu_ms(self._loop), cpu_ms("codec_"), memory.mib("VmHWM"), time.monotonic())
        return status, {
            unit: late - early for unit, late, early in zip(UNITS, after, before, strict=True)
        }


def cpu_ms(prefix: str) -> float:
    """CPU time of the threads with such a name."""
    threads = [
        thread.ident or 0 for thread in threading.enumerate() if thread.name.startswith(prefix)
    ]
    return 1e3 * sum(time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in threads)


def others() -> Iterator[bytes]:
    """A request with no options, and some with as much as possible of what takes time to parse."""
    yield post("/generate", {})
    for path in BODIES:
        yield request(
            path, b"{}", {"Content-Type": "multipart/form-data" + ";" * 15_000 + "boundary=a"}
        )
        yield request(f"{path}?" + "steps=1&" * 1900, PICTURE, {"Content-Type": "image/png"})
        yield request(
            path,
            b"{}",
            {"Content-Type": JSON, **{f"X-{number}": "a" * 200 for number in range(200)}},
        )
        yield request(
            path, b"{}", {"Content-Type": JSON, "Cookie": "a=b; " * 3000, "Accept": "a/b," * 3000}
        )
    yield post("/project", {"images": [{}] * 5000})
    yield post_form("/project", [("image", PICTURE)] * 1000)


def measured() -> dict[str, Cost]:
    """The most that a KiB of each kind of request costs."""
    found: dict[str, list[tuple[bytes, Cost]]] = {}

    def add(kind: str, data: bytes, cost: Cost) -> None:
        found.setdefault(f"{kind}, {'long' if len(data) >= LONG else 'short'}", []).append(
            (data, cost)
        )

    with tempfile.TemporaryDirectory() as folder:
        chosen = {
            "stream_timeout_s": 0.5,
            "api_keys_file": write_keys(Path(folder), {"alice": "infer"}),
        }
        with serving(settings(ROOT / "models", default_model="mnist", **chosen)) as service:
            meter = Meter(service)
            for path, bodies in BODIES.items():
                for options, accept in product(bodies, ACCEPTS):
                    data = with_headers(post(path, options, accept), bearer("alice"))
                    status, cost = meter(data)
                    if status == 200:
                        add(path, data, cost)
            for data in others():
                for kind, sent in (("no key", data), ("any", with_headers(data, bearer("alice")))):
                    add(kind, sent, meter(sent)[1])
            return {kind: most_of(meter, requests) for kind, requests in found.items()}


def most_of(meter: Meter, requests: list[tuple[bytes, Cost]]) -> Cost:
    """The highest cost of a KiB, each the least of three measurements of the request that cost
    most.
    """
    result = Cost()
    for unit in UNITS:
        data, cost = max(requests, key=lambda each: each[1][unit] / len(each[0]))
        result[unit] = min(cost[unit], *(meter(data)[1][unit] for _ in range(2))) / len(data) * 1024
    return result


def limits_of(kind: str) -> Cost:
    limits = LIMITS.get(kind) or LIMITS[f"any, {kind.rpartition(' ')[2]}"]
    return {
        u: limit * (watchdog.slowness() if "CPU" in u else 1.0)
        for u, limit in zip(UNITS, limits, strict=True)
    }


def test_no_byte_costs_more_than_its_limit() -> None:
    costs = measured()
    watchdog.slow.clear()  # the limits here are those of whole requests
    over = [
        (kind, unit, cost[unit])
        for kind, cost in costs.items()
        for unit in UNITS
        if cost[unit] > limits_of(kind)[unit]
    ]
    assert over == []


if __name__ == "__main__":
    lines = [
        {"a KiB of": kind}
        | {unit: f"{cost[unit]:.2g} ≤ {limits_of(kind)[unit]:g}" for unit in UNITS}
        for kind, cost in measured().items()
    ]
    sys.stdout.write(f"{table(lines)}\n")
