"""What a request costs the service for each byte of it, at most: found by a seeded search over the options of the API.

    python -m tests.slow.test_amplification     # prints the table

Limits of CPU time are multiplied by how slow this core is now.
"""

import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

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
    with_headers,
)
from tests.contract.harness import Service, bearer, serving, settings, write_keys
from tests.helpers import memory, watchdog
from tests.helpers.live import ROOT

SEARCHED, LONG = 15, 4096  # requests of each endpoint; bytes
ACCEPTS = (JSON, NPY, EVENTS, "image/png", "image/webp", "image/jpeg", "image/gif")
SCHEMAS = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))["components"]["schemas"]
PICTURE, LARGE_PICTURE = encoded(disc(size=8)), encoded(disc(size=1000))
TEXTS = {
    "model": ("mnist", "avatars64"),
    "latent": (text(npy(np.zeros((1, 28, 28), np.float32))),),
    "": (text(PICTURE), text(LARGE_PICTURE)),
}
RECORDED = {"model": "avatars64", "steps": 8, "record": list(range(1, 9)), "format": "npy"}
ENDPOINTS: dict[str, tuple[str, dict[str, Any]]] = {  # path → schema, and a request to begin with
    "/generate": ("GenerateRequest", {"n": 64, **RECORDED}),
    "/project": ("ProjectRequest", {"images": [text(PICTURE)], **RECORDED}),
    "/latent-interpolate": ("InterpolateRequest", {"points": [{"seed": 0}] * 2, "frames": 256}),
    "/latent-arithmetic": ("ArithmeticRequest", {"terms": [{"seed": 0}], "scale": 32}),
    "/score": ("ScoreRequest", {"images": [text(PICTURE)] * 64}),
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
        self._address, self._loop = service.address, f"loop of {service.url}"

    def __call__(self, data: bytes) -> tuple[int, Cost]:
        """Status and cost."""
        memory.trim()
        memory.forget_peak()
        before = (cpu_ms(self._loop), cpu_ms("codec_"), memory.mib("VmRSS"), time.monotonic())
        with socket.create_connection(self._address, 30.0) as connection:
            connection.sendall(with_headers(data, {"Connection": "close"}))
            status, buffer = int(connection.recv(12)[9:]), bytearray(1 << 16)
            with suppress(ConnectionResetError):  # a body that the service does not receive
                while connection.recv_into(buffer):
                    pass
        after = (cpu_ms(self._loop), cpu_ms("codec_"), memory.mib("VmHWM"), time.monotonic())
        return status, {unit: late - early for unit, late, early in zip(UNITS, after, before, strict=True)}


def cpu_ms(prefix: str) -> float:
    """CPU time of the threads with such a name."""
    threads = [thread.ident or 0 for thread in threading.enumerate() if thread.name.startswith(prefix)]
    return 1e3 * sum(time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in threads)


def extreme(rng: np.random.Generator, name: str, schema: dict[str, Any]) -> Any:
    """A value at a limit of its schema, or one that is legal more often."""
    if "anyOf" in schema:
        schema = rng.choice([each for each in schema["anyOf"] if each.get("type") != "null"])
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rpartition("/")[2]]
    match schema:
        case {"enum": values}:
            return str(rng.choice(values))
        case {"type": "boolean"}:
            return bool(rng.integers(2))
        case {"type": "integer"}:
            return int(rng.choice([schema.get("minimum", 0), 16, schema.get("maximum", 64)]))
        case {"type": "number"}:
            return float(rng.choice([schema.get("minimum", 1e-9), schema.get("maximum", 1.0)]))
        case {"type": "array", "uniqueItems": True}:
            return list(range(int(rng.choice([1, 17]))))
        case {"type": "array"}:
            return [extreme(rng, name, schema["items"])] * int(rng.choice([1, 2, 16, 64]))
        case {"properties": properties}:
            chosen = [each for each in properties if each in schema.get("required", ()) or rng.random() < 0.3]
            return {each: extreme(rng, each, properties[each]) for each in chosen}
    return str(rng.choice(TEXTS.get(name, TEXTS[""])))


def searched(meter: Meter, path: str, schema: str, options: dict[str, Any]) -> Iterator[tuple[bytes, Cost]]:
    """Legal requests: a third is random, the others have one option unlike one of the most expensive so far."""
    rng, accept = np.random.default_rng(0), JSON
    most: dict[str, tuple[float, dict[str, Any], str]] = {}
    for number in range(SEARCHED):
        data = with_headers(post(path, options, accept), bearer("alice"))
        status, cost = meter(data)
        if status == 200:
            yield data, cost
            for unit, value in cost.items():
                most[unit] = max(most.get(unit, (0.0, {}, "")), (value / len(data), options, accept), key=itemgetter(0))
        options, accept = extreme(rng, "", {"$ref": schema}), str(rng.choice(ACCEPTS))
        if most and number % 3:
            _, base, accept = most[str(rng.choice(list(most)))]
            name = str(rng.choice(list(SCHEMAS[schema]["properties"])))
            options = base | {name: extreme(rng, name, SCHEMAS[schema]["properties"][name])}


def others() -> Iterator[bytes]:
    """A request with no options, and some with as much as possible of what takes time to parse."""
    yield post("/generate", {})
    for path in ENDPOINTS:
        yield request(path, b"{}", {"Content-Type": "multipart/form-data" + ";" * 15_000 + "boundary=a"})
        yield request(f"{path}?" + "steps=1&" * 1900, PICTURE, {"Content-Type": "image/png"})
        yield request(path, b"{}", {"Content-Type": JSON, **{f"X-{number}": "a" * 200 for number in range(200)}})
        yield request(path, b"{}", {"Content-Type": JSON, "Cookie": "a=b; " * 3000, "Accept": "a/b," * 3000})
    yield post("/project", {"images": [{}] * 5000})
    yield post_form("/project", [("image", PICTURE)] * 1000)


def measured() -> dict[str, Cost]:
    """The most that a KiB of each kind of request costs."""
    found: dict[str, list[tuple[bytes, Cost]]] = {}

    def add(kind: str, data: bytes, cost: Cost) -> None:
        found.setdefault(f"{kind}, {'long' if len(data) >= LONG else 'short'}", []).append((data, cost))

    with tempfile.TemporaryDirectory() as folder:
        chosen = {"stream_timeout_s": 0.5, "api_keys_file": write_keys(Path(folder), {"alice": "infer"})}
        with serving(settings(ROOT / "models", default_model="mnist", **chosen)) as service:
            meter = Meter(service)
            for path, (schema, options) in ENDPOINTS.items():
                for data, cost in searched(meter, path, schema, options):
                    add(path, data, cost)
            for data in others():
                for kind, sent in (("no key", data), ("any", with_headers(data, bearer("alice")))):
                    add(kind, sent, meter(sent)[1])
            return {kind: most_of(meter, requests) for kind, requests in found.items()}


def most_of(meter: Meter, requests: list[tuple[bytes, Cost]]) -> Cost:
    """The highest cost of a KiB, each the least of three measurements of the request that cost most."""
    result = Cost()
    for unit in UNITS:
        data, cost = max(requests, key=lambda each: each[1][unit] / len(each[0]))
        result[unit] = min(cost[unit], *(meter(data)[1][unit] for _ in range(2))) / len(data) * 1024
    return result


def limits_of(kind: str) -> Cost:
    limits = LIMITS.get(kind) or LIMITS[f"any, {kind.rpartition(' ')[2]}"]
    return {u: limit * (watchdog.slowness() if "CPU" in u else 1.0) for u, limit in zip(UNITS, limits, strict=True)}


def test_no_byte_costs_more_than_its_limit() -> None:
    costs = measured()
    watchdog.slow.clear()  # the limits here are those of whole requests
    over = [
        (kind, unit, cost[unit]) for kind, cost in costs.items() for unit in UNITS if cost[unit] > limits_of(kind)[unit]
    ]
    assert over == []


if __name__ == "__main__":
    lines = [
        {"a KiB of": kind} | {unit: f"{cost[unit]:.2g} ≤ {limits_of(kind)[unit]:g}" for unit in UNITS}
        for kind, cost in measured().items()
    ]
    sys.stdout.write(f"{table(lines)}\n")
