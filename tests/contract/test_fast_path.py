"""A small request has the same answer, log line and metrics whether `FastPath` or the ASGI application answers it."""

import hashlib
import json
import logging
import random
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from service.api.request import ApiRequest
from service.api.native import stages
from service.api.native.responses import ResponseSpec, encode_contents
from service.domain.errors import DeadlineExceeded
from service.domain.tasks import Result
from service.server.fast_request import BODY_WAIT_S, FastRequest
from tests.contract.harness import PATIENCE_S, Service, b64, gated, latents, serving, settings
from tests.contract.oip import LENGTH, as_binary
from tests.helpers.connection import Connection
from tests.helpers.pictures import noise, save

REQUESTS: Final = 2000
KEYS: Final = {"alice": ["infer"], "ops": ["admin"]}
# Families of metrics that count; the others measure time, or when something happened.
COUNTED: Final = (
    "ign_requests",
    "ign_http_errors",
    "ign_caller_requests",
    "ign_caller_row_steps",
    "ign_row_steps",
    "ign_scheduled_requests",
    "ign_rejected_requests",
    "ign_distance",
    "ign_drift",
    "ign_early_exits",
)
PNG: Final = save(Image.fromarray(noise(8, 8)), "PNG")
PICTURES: Final = [
    PNG,
    save(Image.fromarray(noise(8, 8, 3)), "PNG"),
    save(Image.fromarray(noise(8, 8, 3)).convert("RGBA"), "PNG"),
    save(Image.fromarray(noise(20, 12)), "PNG"),
    save(Image.fromarray(noise(8, 8)), "JPEG"),
    save(Image.fromarray(noise(200, 150)), "PNG"),
    PNG[:-20],
    PNG[:8],
    b"no picture",
    b"",
]


class Requests:
    """Random requests: most of them valid and small, each of the others wrong or unusual in one or two ways."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pick(self, *choices: Any) -> Any:
        return self._random.choice(choices)

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def request(self) -> bytes:
        path, headers, body = self.pick(self.generate, self.raw, self.json, self.form, self.infer)()
        if self.chance(0.2):
            headers.append(self.odd_header())
        if self.chance(0.9):
            key = self.pick(*["Bearer alice"] * 9, "bearer  alice", "Bearer ops", "Bearer x", "Basic x")
            headers.append(("Authorization", key))
        length = str(len(body)).encode()
        if self.chance(0.03):
            headers.append(("Transfer-Encoding", "chunked"))
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        elif not (self.chance(0.02) and not body):
            headers.append(("Content-Length", length.decode()))
        method = "GET" if self.chance(0.02) else "POST"
        head = "".join(f"{name}: {value}\r\n" for name, value in headers)
        return b"%s%s" % (f"{method} {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode("latin-1"), body)

    def odd_header(self) -> tuple[str, str]:
        found: tuple[str, str] = self.pick(
            ("X-Request-ID", self.pick("abc.1", "not valid!", "", "é")),
            ("X-Request-Timeout", self.pick("5", "0", "-1", "abc", "1e3", "0.000000001", "999999999")),
            ("X-Forwarded-For", "192.0.2.7"),
            ("Accept", self.pick("image/png", "*/*", "nonsense", "")),
            ("Origin", self.pick("https://app.example", "https://other.example")),
            ("Content-Encoding", self.pick("gzip", "identity")),
            ("Accept-Encoding", self.pick("gzip", "deflate", "gzip, br")),
            ("Accept-Language", "fr"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("Content-Type", "application/json"),
            ("Connection", "keep-alive"),
            ("Unknown", "x"),
        )
        return found

    def accept(self, *media: str) -> list[tuple[str, str]]:
        chosen = self.pick("image/png", "image/png", "application/json", None, *media)
        return [] if chosen is None else [("Accept", chosen)]

    def options(self) -> dict[str, Any]:
        made: dict[str, Any] = {"steps": self.pick(1, 1, 2, 3)} if self.chance(0.8) else {}
        for name, values in {
            "steps": (0, 9, "x", 10**30),
            "model": ("grey", "grey/2", "colour", "absent", 7),
            "format": ("npy", "webp", "gif"),
            "tolerance": (0.5, 0, 1e-9),
            "score": (True, False, "yes"),
            "record": ([1], [0, 1], [5], []),
            "unknown": (1,),
            "scale": (2, 0),
            "columns": (1,),
        }.items():
            if self.chance(0.03):
                made[name] = self.pick(*values)
        return made

    def generate(self) -> tuple[str, list[tuple[str, str]], bytes]:
        body = self.options() | {"seed": self.pick(1, 2, 3)}
        for name, values in {
            "n": (2, 3, 5, 300),
            "seed": (-1, 1.5),
            "offset": (4, -1),
            "noise_scale": (0.5, 9),
        }.items():
            if self.chance(0.05):
                body[name] = self.pick(*values)
        content = json.dumps(body).encode()
        if self.chance(0.05):
            content = self.pick(b"", b"[]", b"{", b'{"seed": NaN}', b"\xff", b'{"seed": 1, "seed": 2}')
            content = content if content else b'{"seed":1}'
        kind = self.pick(*["application/json"] * 8, "application/json; charset=utf-8", "text/plain")
        media = ("application/x-npy", "image/webp", "image/jpeg", "text/event-stream", "image/gif", "text/html")
        return (
            self.pick("/generate", "/generate", "/generate?steps=1"),
            [("Content-Type", kind), *self.accept(*media)],
            content,
        )

    def picture(self) -> bytes:
        return PNG if self.chance(0.7) else self.pick(*PICTURES)

    def raw(self) -> tuple[str, list[tuple[str, str]], bytes]:
        options = self.options() | ({"strength": self.pick(0, 0.5, 2)} if self.chance(0.1) else {})
        query = "&".join(f"{name}={str(value).strip('[]').replace(' ', '')}" for name, value in options.items())
        path = f"/project?{query}" if query else "/project"
        if self.chance(0.05):
            path += self.pick("#x", "&steps=2", "&%20", "&a")
        kind = self.pick(*["image/png"] * 8, "image/jpeg", "image/gif", "image/png; x=1")
        return path, [("Content-Type", kind), *self.accept("application/x-npy", "image/webp")], self.picture()

    def json(self) -> tuple[str, list[tuple[str, str]], bytes]:
        body = self.options() | {"images": [b64(self.picture()) for _ in range(self.pick(1, 1, 2, 5, 0))]}
        if self.chance(0.2):
            body["mask"] = b64(PNG)
        return "/project", [("Content-Type", "application/json"), *self.accept()], json.dumps(body).encode()

    def form(self) -> tuple[str, list[tuple[str, str]], bytes]:
        parts = [b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + self.picture()]
        parts *= self.pick(1, 1, 2)
        for name, value in self.options().items():
            parts.append(f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode())
        end = b"" if self.chance(0.05) else b"--b--\r\n"
        body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end
        kind = self.pick(*["multipart/form-data; boundary=b"] * 9, "multipart/form-data")
        return "/project", [("Content-Type", kind), *self.accept()], body

    def infer(self) -> tuple[str, list[tuple[str, str]], bytes]:
        rows = latents(self.pick(1, 2), n=self.pick(1, 1, 1, 2))
        parameters: dict[str, Any] = {"steps": self.pick(1, 2)}
        if self.chance(0.7):
            parameters["binary_data_output"] = True
        if self.chance(0.1):
            parameters |= self.pick({"steps": 0}, {"timeout": 10**7}, {"timeout": 1}, {"unknown": 1})
        body, length = as_binary(rows, parameters=parameters, **({"id": "x"} if self.chance(0.2) else {}))
        if self.chance(0.05):
            body = self.pick(body[:-1], body[:10], body + b"x")
        if self.chance(0.05):
            length = self.pick(0, 10**6, length - 1)
        path = self.pick(*["/v2/models/grey/infer"] * 5, "/v2/models/grey/versions/2/infer", "/v2/models/absent/infer")
        return path, [(LENGTH, str(length)), *self.accept()], body


class Log(logging.Handler):
    """What the access log says about the requests of a service."""

    def __init__(self, service: Service) -> None:
        super().__init__(logging.INFO)
        self.lines: Counter[tuple[Any, ...]] = Counter()
        self._thread = f"loop of {service.url}"

    def emit(self, record: logging.LogRecord) -> None:
        if record.threadName == self._thread:
            state, (_, method, route, status, _) = record.request, record.args  # type: ignore[attr-defined, misc]
            names = ("caller", "peer", "model", "rows", "steps", "problem", "request_bytes", "api_key")
            self.lines[(method, route, status, "queue_s" in state, *(state.get(name) for name in names))] += 1


def answers(service: Service, requests: list[bytes], cuts: list[int]) -> Iterator[tuple[Any, ...]]:
    """The answers to pipelined requests, without what differs from one to the next of equal requests."""
    with socket.create_connection(service.address, PATIENCE_S) as connection:
        data, start = b"".join(requests), 0
        for cut in [*sorted(cut % len(data) for cut in cuts), len(data)]:
            connection.sendall(data[start:cut])
            start = cut
            time.sleep(0.001 if cuts else 0.0)
        with connection.makefile("rb") as stream:
            for _ in requests:
                answer = one_answer(stream)
                if answer is None:
                    return
                yield answer


def one_answer(stream: Any) -> tuple[Any, ...] | None:
    line = stream.readline()
    if not line:
        return None
    headers = []
    while (header := stream.readline().strip()) != b"":
        name, _, value = header.decode("latin-1").partition(": ")
        headers.append((name, value))
    by_name = dict(headers)
    if "content-length" in by_name:
        body = stream.read(int(by_name["content-length"]))
    else:
        body = b""
        while size := int(stream.readline(), 16):
            body += stream.read(size)  # without the end of the chunk: where a stream is cut is a matter of time
            stream.readline()
        stream.readline()
    return line, tuple(masked(name, value, body) for name, value in headers), masked_body(body)


def masked(name: str, value: str, body: bytes) -> tuple[str, str]:
    if name == "server-timing":
        value = re.sub(r"[0-9.]+", "0", value)
    elif name in ("date", "retry-after", "traceparent"):
        value = ""
    elif name == "x-request-id" and re.fullmatch("[0-9a-f]{32}", value):
        value = "random"
    elif name == "content-length" and body.startswith(b"{"):
        value = "as its timing is long"
    return name, value


def masked_body(body: bytes) -> bytes:
    body = re.sub(rb"event: progress\n.*\n\n", b"", body)  # how many come is a matter of time
    body = re.sub(rb'"(\w+_ms)":[0-9.e-]+', rb'"\1":0', body)
    return re.sub(rb'"request_id": ?"[0-9a-f]{32}"', b"", body)


def counts(service: Service) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(service.get("/metrics").text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        if family.name in COUNTED
        for sample in family.samples
        if sample.labels.get("code") != "not_ready"  # of `/readyz`, until the service is ready
        if not sample.name.endswith("_sum") and sample.labels.get("endpoint") not in ("/metrics", "/readyz")
    }


@contextmanager
def both_ways(models: Path, **options: Any) -> Iterator[tuple[Service, Service, Callable[[], int]]]:
    """A service with and one without the fast path, and how many requests the fast path has answered so far."""
    answered = 0
    plain = FastRequest.answer

    def answer(request: FastRequest, status: int, headers: bytes, body: bytes, *, close: bool = False) -> None:
        nonlocal answered
        answered += 1
        plain(request, status, headers, body, close=close)

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(FastRequest, "answer", answer)
        one = stack.enter_context(serving(settings(models, max_steps=8, max_images=64, **options)))
        other = stack.enter_context(serving(settings(models, max_steps=8, max_images=64, **options), fast_path=False))
        yield one, other, lambda: answered


@pytest.mark.parametrize("way", ["open", "keys"])
def test_both_ways_answer_alike(models: Path, tmp_path: Path, way: str) -> None:
    keys = tmp_path / "keys.json"
    entries = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "scopes": scopes, "quota": "100000/s"}
        for name, scopes in KEYS.items()
    ]
    keys.write_text(json.dumps(entries))
    options: dict[str, Any] = {"trusted_proxies": ("127.0.0.0/8",)} if way == "open" else {"api_keys_file": keys}
    made = Requests(7 if way == "open" else 8)
    chooser = random.Random(9)
    origins = ("https://app.example",) if way == "open" else ("*",)
    with both_ways(models, cors_origins=origins, **options) as (fast, slow, answered):
        logs = Log(fast), Log(slow)
        access = logging.getLogger("service.access")
        level = access.level
        access.setLevel(logging.INFO)
        for log in logs:
            access.addHandler(log)
        try:
            sent = 0
            while sent < REQUESTS // 2:
                requests = [made.request() for _ in range(chooser.choice((1, 1, 1, 2, 4)))]
                cuts = [chooser.randrange(1, 1 << 16) for _ in range(chooser.choice((0, 0, 0, 0, 1, 2)))]
                assert list(answers(fast, requests, cuts)) == list(answers(slow, requests, cuts)), requests
                sent += len(requests)
            assert answered() > REQUESTS // 20
            assert counts(fast) == counts(slow)
        finally:
            for log in logs:
                access.removeHandler(log)
            access.setLevel(level)
        assert logs[0].lines == logs[1].lines
        for service in (fast, slow):
            assert service.services.in_flight.count <= 1  # the scrape itself
            assert service.services.in_flight.bytes == service.services.in_flight.arriving == 0


ASKED: Final = (
    b'POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"seed":1}'
)


def test_a_client_that_leaves_cancels_its_request(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gated(monkeypatch, settings(models)) as (service, gate), gate:
        first, second = Connection(service.address).send(ASKED), Connection(service.address)
        assert gate.entered.wait(PATIENCE_S)
        second.send(ASKED)
        service.until_metric("ign_queue_rows", 1)
        second.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        second.close()
        service.until_metric("ign_cancelled_rows_total", 1)
        service.until_metric("ign_requests_total", 1, status="4xx", endpoint="/generate")
        gate.opened.set()
        assert first.answer()[0] == 200
        first.close()
        assert service.services.in_flight.count <= 1
        assert service.metric("ign_row_steps_count") == 1


def test_a_request_ends_at_its_deadline(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gated(monkeypatch, settings(models)) as (service, gate), gate:
        asked = ASKED.replace(b"Host: x", b"Host: x\r\nX-Request-Timeout: 0.2")
        with Connection(service.address).send(asked) as connection:
            status, headers, body = connection.answer()
        assert (status, json.loads(body)["code"]) == (504, "deadline_exceeded")
        assert headers["content-type"] == "application/problem+json"
        assert headers["x-request-id"] == json.loads(body)["request_id"]


def test_a_response_that_cannot_be_made_fails_alone(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(ended: list[tuple[ApiRequest, ResponseSpec, Result]]) -> list[list[bytes]]:
        if any(spec.members.get("seed") == 2 for _, spec, _ in ended):
            raise DeadlineExceeded("too late")
        return encode_contents(ended)

    monkeypatch.setattr(stages, "encode_contents", encode)
    with gated(monkeypatch, settings(models)) as (service, gate), gate:
        first = Connection(service.address).send(ASKED)
        assert gate.entered.wait(PATIENCE_S)
        others = [Connection(service.address).send(ASKED.replace(b":1}", b":%d}" % seed)) for seed in (1, 2, 3)]
        service.until_metric("ign_queue_rows", 3)
        gate.opened.set()
        answers = [connection.answer()[0] for connection in (first, *others)]
        for connection in (first, *others):
            connection.close()
    assert answers == [200, 200, 504, 200]


def test_a_body_may_come_late(service: Service) -> None:
    connection = Connection(service.address).send(ASKED[:-10])
    time.sleep(3 * BODY_WAIT_S)
    assert connection.send(ASKED[-10:]).answer()[0] == 200
    connection.close()


def test_requests_in_flight_are_limited(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gated(monkeypatch, settings(models, max_inflight_requests=3)) as (service, gate), gate:
        connections = [Connection(service.address).send(ASKED) for _ in range(8)]
        service.until_metric("ign_requests_total", 5, status="5xx", endpoint="/generate")
        gate.opened.set()
        assert sorted(connection.answer()[0] for connection in connections) == [200] * 3 + [503] * 5
        for connection in connections:
            connection.close()


def test_requests_end_with_503_when_the_service_stops(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gated(monkeypatch, settings(models)) as (service, gate), gate:
        connection = Connection(service.address).send(ASKED)
        assert gate.entered.wait(PATIENCE_S)
        service.services.registry.abort_all()
        status, headers, body = connection.answer()
        assert (status, json.loads(body)["code"], headers["connection"]) == (503, "draining", "close")
        assert connection.is_over()
        connection.close()
