"""What a request costs the service for each byte of it, at most: found by a seeded search over the options of the API.

python -m tests.slow.test_amplification     # prints the table
"""

import ctypes
import gc
import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.tables import table
from benchmarks.load_generator.messages import (
    EVENTS,
    JSON,
    NPY,
    disc,
    encoded,
    npy,
    post,
    post_form,
    request,
    text,
    upload,
    with_headers,
)
from tests.contract.harness import Service, bearer, serving, settings, write_keys
from tests.helpers.live import ROOT

SEARCHED = 60  # requests of each endpoint
LONG = 4096  # bytes
SECONDS = 1.0  # that a request or a stream may take here
ACCEPTS = (JSON, NPY, EVENTS, "image/png", "image/webp", "image/jpeg", "image/gif")
SCHEMAS = json.loads((ROOT / "docs" / "openapi.json").read_text())["components"]["schemas"]
ENDPOINTS = {
    "/generate": "GenerateRequest",
    "/project": "ProjectRequest",
    "/latent-interpolate": "InterpolateRequest",
    "/latent-arithmetic": "ArithmeticRequest",
    "/score": "ScoreRequest",
}
PICTURE = encoded(disc(size=8))
LARGE_PICTURE = encoded(disc(size=1000))
TEXTS = {
    "model": ("mnist", "avatars64"),
    "latent": (text(npy(np.zeros((1, 28, 28), np.float32))),),
    "": (text(PICTURE), text(LARGE_PICTURE)),
}
UNITS = {"loop CPU": "ms", "codec CPU": "ms", "memory": "MiB", "time": "s"}
Cost = dict[str, float]


class Meter:
    """Sends requests to a service in this process, and measures what each costs."""

    def __init__(self, service: Service) -> None:
        self._address, self._loop = service.address, f"loop of {service.url}"
        self._trim = ctypes.CDLL(None).malloc_trim

    def __call__(self, data: bytes) -> tuple[int, Cost]:
        """Status and cost."""
        self._trim(0)  # so that memory that is used again counts again
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory is the present one
        start, before = time.monotonic(), (cpu_s(self._loop), cpu_s("codec_"), memory_mib("VmRSS"))
        with socket.create_connection(self._address, 30.0) as connection:
            connection.sendall(data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            status, buffer = int(connection.recv(12)[9:]), bytearray(1 << 16)
            while connection.recv_into(buffer):
                pass
        seconds, after = time.monotonic() - start, (cpu_s(self._loop), cpu_s("codec_"), memory_mib("VmHWM"))
        loop, codec, memory = (late - early for late, early in zip(after, before, strict=True))
        return status, dict(zip(UNITS, (loop * 1e3, codec * 1e3, memory, seconds), strict=True))


def cpu_s(prefix: str) -> float:
    """CPU seconds of the threads with such a name."""
    threads = [thread.ident or 0 for thread in threading.enumerate() if thread.name.startswith(prefix)]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in threads)


def memory_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def extreme(rng: np.random.Generator, name: str, schema: dict[str, Any]) -> Any:
    """A value at a limit of its schema, or its default."""
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return extreme(rng, name, rng.choice([each for each in schema["anyOf"] if each.get("type") != "null"]))
    if "enum" in schema:
        return str(rng.choice(schema["enum"]))
    match schema["type"]:
        case "boolean":
            return bool(rng.integers(2))
        case "integer" | "number":
            kind = int if schema["type"] == "integer" else float
            limits = [schema.get(key) for key in ("minimum", "maximum", "default")]
            return kind(rng.choice([limit for limit in limits if limit is not None] or [1e-9]))
        case "array":
            count = int(rng.choice([schema.get("minItems", 1), 16, 64]))
            return list(range(count)) if schema.get("uniqueItems") else [extreme(rng, name, schema["items"])] * count
        case "object":
            optional = [each for each in schema["properties"] if rng.random() < 0.3]
            names = dict.fromkeys([*schema.get("required", ()), *optional])
            return {each: extreme(rng, each, schema["properties"][each]) for each in names}
    return str(rng.choice(TEXTS.get(name, TEXTS[""])))


def searched(meter: Meter, path: str, schema: str) -> Iterator[tuple[str, bytes, Cost]]:
    """Legal requests: half of them random ones, half with one option unlike one of the most expensive so far."""
    rng, most = np.random.default_rng(0), dict[str, tuple[float, dict[str, Any]]]()
    for number in range(SEARCHED):
        options = extreme(rng, "", {"$ref": schema})
        if most and number % 2:
            base, changed = most[str(rng.choice(list(most)))][1], str(rng.choice(list(SCHEMAS[schema]["properties"])))
            options = {each: value for each, value in base.items() if each != changed} | (
                {changed: options[changed]} if changed in options else {}
            )
        data = with_headers(post(path, options, str(rng.choice(ACCEPTS))), bearer("alice"))
        status, cost = meter(data)
        if status != 200:
            continue
        for unit, value in cost.items():
            if value / len(data) > most.get(unit, (0.0,))[0]:
                most[unit] = value / len(data), options
        yield f"{path}, {'long' if len(data) >= LONG else 'short'}", data, cost


def long_requests() -> Iterator[bytes]:
    """Requests with as much as possible of what costs time to parse."""
    fields = {f"X-{number}": "a" * 200 for number in range(200)}
    for path in ENDPOINTS:
        yield request(path, b"{}", {"Content-Type": "multipart/form-data" + ";" * 15_000 + "boundary=a"})
        yield request(f"{path}?" + "steps=1&" * 1900, PICTURE, {"Content-Type": "image/png"})
        yield request(path, b"{}", {"Content-Type": JSON, **fields})
        yield request(path, b"{}", {"Content-Type": JSON, "Cookie": "a=b; " * 3000, "Accept": "a/b," * 3000})
    yield post("/project", {"images": [{}] * 5000})
    yield post("/latent-interpolate", {"points": [{}] * 5000})
    yield post_form("/project", [("image", PICTURE)] * 1000)
    yield upload("/project", LARGE_PICTURE)


def measured() -> dict[str, Cost]:
    """The most that a KiB of each kind of request costs."""
    with tempfile.TemporaryDirectory() as folder:
        keys = write_keys(Path(folder), {"alice": "infer"})
        limits = {"request_timeout_s": SECONDS, "stream_timeout_s": SECONDS, "api_keys_file": keys}
        with serving(settings(ROOT / "models", default_model="mnist", **limits)) as service:
            meter = Meter(service)
            found: dict[str, list[tuple[bytes, Cost]]] = {}
            for path, schema in ENDPOINTS.items():
                for kind, data, cost in searched(meter, path, schema):
                    found.setdefault(kind, []).append((data, cost))
            for data in long_requests():
                for kind, sent in (("no key", data), ("long head or body", with_headers(data, bearer("alice")))):
                    found.setdefault(kind, []).append((sent, meter(sent)[1]))
            return {kind: most(meter, requests) for kind, requests in found.items()}


def most(meter: Meter, requests: list[tuple[bytes, Cost]]) -> Cost:
    """The highest cost of a KiB, each the least of three measurements of the request that cost most."""
    result = Cost()
    for unit in UNITS:
        data, cost = max(requests, key=lambda each: each[1][unit] / len(each[0]))
        result[unit] = min(cost[unit], *(meter(data)[1][unit] for _ in range(2))) / len(data) * 1024
        if "-v" in __import__("sys").argv:
            print(unit, result[unit], cost[unit], len(data), data[:60], data[-300:])
    return result


if __name__ == "__main__":
    print(table([{"a KiB of": kind, **cost} for kind, cost in measured().items()]))
