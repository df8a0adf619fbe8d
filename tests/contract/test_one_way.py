"""Every request goes one way: whatever headers it has, whatever runs beside it, and whatever ends
it.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load_generator.messages import HEADER_SETS, request, with_headers
from benchmarks.reliability.cases import GOOD, Case
from benchmarks.reliability.hostile_inputs import bad_image, damaged_request, wrong_options
from model_export.data.chance import choose
from service.images.decode import EncodedImage
from tests.contract.data import PICTURE, b64, latents
from tests.contract.harness import (
    LIMIT_S,
    PATIENCE_S,
    Gate,
    Service,
    bearer,
    gated,
    serving,
    settings,
    write_keys,
    write_models,
)
from tests.contract.oip import INFER, LENGTH, as_binary
from tests.helpers.connection import Connection
from tests.helpers.onnx_models import write_model
from tests.helpers.pictures import noise, save

REQUESTS: Final = 400
BESIDE: Final = 16  # requests of one turn of the event loop
# Families of metrics that count; the others measure time, or when something happened.
NAMES: Final = (
    "requests http_errors caller_requests caller_row_steps row_steps scheduled_requests "
    "rejected_requests distance drift early_exits"
)
COUNTED: Final = {f"ign_{name}" for name in NAMES.split(" ")}


Labels = tuple[tuple[str, str], ...]


def counts(service: Service) -> Counter[tuple[str, Labels]]:
    service.get("/healthz")  # the event loop has counted the requests before this one
    found = Counter[tuple[str, Labels]]()
    for family in text_string_to_metric_families(service.services.metrics.render()[0].decode()):
        for sample in family.samples if family.name in COUNTED else ():
            if not (
                sample.name.endswith("_sum")
                or sample.labels.get("endpoint") in ("/healthz", "/readyz")
            ):
                found[sample.name, tuple(sorted(sample.labels.items()))] += int(sample.value)
    return found


def said(line: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A line of the access log without what differs between equal requests."""
    differs = {"time", "message", "request_id", "trace_id", "span_id", "response_bytes"}
    return tuple(
        (name, value if "ms" not in name else 0)
        for name, value in line.items()
        if name not in differs
    )


# Whatever headers it has


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OWN = {"Accept-Encoding": "gzip, deflate, br, zstd", "Idempotency-Key": "1", "X-Unknown": "x"}
GATEWAYS = {name: dict(headers) for name, headers in HEADER_SETS.items()} | {
    "a client of its own": OWN
}


FORM = (
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + PICTURE + b"\r\n"
)
FIELD = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
MULTIPART = "multipart/form-data; boundary=b"
TENSOR, TENSOR_HEAD = as_binary(latents(1, n=2), parameters={"binary_data_output": True})
JSON_IMAGE = json.dumps({"images": [b64(PICTURE)]}).encode()
SHEET = {"seed": 1, "n": 3, "scale": 2, "columns": 3, "gap": 1}
PLAIN: dict[str, tuple[str, str, bytes]] = {
    "JSON": ("/generate", "application/json", b'{"seed": 1}'),
    "JSON with a charset": ("/generate", "application/json; charset=utf-8", b'{"seed": 1}'),
    "JSON of a sheet": ("/generate", "application/json", json.dumps(SHEET).encode()),
    "JSON of an image": ("/project", "application/json", JSON_IMAGE),
    "a raw image": ("/project", "image/png", PICTURE),
    "a raw image and a query": ("/project?scale=2&columns=1&gap=1", "image/png", PICTURE),
    "a form": ("/project", MULTIPART, FORM + b"--b--\r\n"),
    "a form with options": ("/project", MULTIPART, FORM + FIELD % (b"scale", b"2") + b"--b--\r\n"),
    "a tensor": (INFER, "application/octet-stream", TENSOR),
}


def seen(service: Service, name: str, headers: dict[str, str]) -> tuple[Any, ...]:
    """What the client and the log see of a request."""
    path, kind, body = PLAIN[name]
    own = {"Content-Type": kind, "Accept": "image/png"} | (
        {LENGTH: str(TENSOR_HEAD)} if path == INFER else {}
    )
    with service.access_log() as lines:
        response = service.post(path, content=body, headers=own | headers)
        service.until(lambda: bool(lines) and service.get("/healthz").is_success)
    (line,) = lines
    assert line["response_bytes"] == len(response.content)
    told = {
        name: value
        for name, value in response.headers.items()
        if name.startswith("x-ign") or "content" in name
    }
    return response.status_code, response.content, told, said(line)


@pytest.mark.parametrize("name", PLAIN)
def test_headers_of_gateways_and_browsers_change_nothing(service: Service, name: str) -> None:
    before = counts(service)
    plain = seen(service, name, {})
    assert plain[0] == 200
    between = counts(service)
    for gateway, headers in GATEWAYS.items():
        assert seen(service, name, headers) == plain, gateway
    once = between - before
    all_together = counts(service) - between
    assert all_together == {labels: value * len(GATEWAYS) for labels, value in once.items()}


# Whatever runs beside it


ODD_HEADERS: Final[list[dict[str, str]]] = [
    {name: value}
    for name, values in {
        "X-Request-ID": ("abc.1", "not valid!", "é"),
        "X-Request-Timeout": ("5", "0", "abc"),
        "Accept": (
            *("application/json", "application/x-npy", "image/webp", "text/html", ""),
            *("*/*", "text/event-stream"),
        ),
        "Origin": ("https://app.example", "https://other.example"),
        "Content-Encoding": ("gzip", "identity"),
        LENGTH: ("0", "1000000", str(TENSOR_HEAD - 1)),
        "traceparent": (TRACEPARENT,),
    }.items()
    for value in values
] + list(GATEWAYS.values())


def random_request(rng: np.random.Generator) -> bytes:
    """A request of the campaign, or one of `PLAIN`; some with a header that may make it invalid."""
    make = choose(rng, (plain, plain, whole, damaged_request, wrong_options, bad_image))
    more = choose(rng, ODD_HEADERS) if rng.random() < 0.4 else {}
    return with_headers(make(rng).data, {"Authorization": "Bearer alice-key"} | more)


def plain(rng: np.random.Generator) -> Case:
    path, kind, body = choose(rng, list(PLAIN.values()))
    head = {LENGTH: str(TENSOR_HEAD)} if path == INFER else {}
    return Case("", request(path, body, head | {"Content-Type": kind, "Accept": "image/png"}))


def whole(rng: np.random.Generator) -> Case:
    return Case("", choose(rng, GOOD))


Reply = tuple[bytes, Labels, bytes]


def reply(stream: Any) -> Reply:
    """A response without ids, dates and timings."""
    line = stream.readline()
    headers = dict[str, str]()
    while (header := stream.readline().strip()) != b"":
        name, _, value = header.decode("latin-1").partition(": ")
        headers[name] = value
    if "content-length" in headers:
        body = stream.read(int(headers["content-length"]))
    else:
        body = b""
        while size := int(stream.readline(), 16):
            # without the end of the chunk: where a stream is cut is a matter of time
            body += stream.read(size)
            stream.readline()
        stream.readline()
    if body.startswith(b"{"):
        headers.pop("content-length")  # its timing is as long as it is
    for name in ("date", "retry-after", "server-timing", "traceparent"):
        headers.pop(name, None)
    if re.fullmatch("[0-9a-f]{32}", headers["x-request-id"]):
        headers["x-request-id"] = "random"
    body = re.sub(rb"event: progress\n.*\n\n", b"", body)  # how many come is a matter of time
    body = re.sub(rb'"(\w+_ms)":[0-9.e-]+', rb'"\1":0', body)
    return (
        line,
        tuple(sorted(headers.items())),
        re.sub(rb'"request_id": ?"[0-9a-f]{32}"', b"", body),
    )


def alone(service: Service, request: bytes) -> Reply:
    with Connection(service.address).send(request) as connection:
        return reply(connection.stream)


def together(service: Service, requests: list[bytes], ends: list[bool]) -> list[Reply]:
    """Send requests at once, pipelined in pairs unless the connection ends with the response to the
    first.
    """
    replies: dict[int, Reply] = {}
    pairs: list[list[int]] = []
    for number in sorted(range(len(requests)), key=lambda number: ends[number]):
        if pairs and len(pairs[-1]) == 1 and not ends[pairs[-1][0]]:
            pairs[-1].append(number)
        else:
            pairs.append([number])
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(service.address)) for _ in pairs]
        with service.paused():
            for connection, pair in zip(connections, pairs, strict=True):
                connection.send(b"".join(requests[number] for number in pair))
        for connection, pair in zip(connections, pairs, strict=True):
            replies |= {number: reply(connection.stream) for number in pair}
    return [replies[number] for number in range(len(requests))]


@pytest.mark.parametrize("seed", [7, 8])
def test_a_request_is_answered_alike_alone_and_beside_others(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    models = write_models(tmp_path)
    write_model(models, "mnist", "1", (1, 28, 28))  # which the campaign asks for
    monkeypatch.setattr("secrets.randbits", lambda _: 7)
    rng = np.random.default_rng(seed)
    requests = [random_request(rng) for _ in range(REQUESTS // 2)]
    more = {"api_keys_file": keys} if seed == 8 else {"trusted_proxies": ("127.0.0.0/8",)}
    with serving(
        settings(models, max_steps=8, cors_origins=("https://app.example",), **more)
    ) as service:
        start = counts(service)
        with service.access_log() as lines_alone:
            expected = [alone(service, request) for request in requests]
            between = counts(service)
        ends = [dict(headers).get("connection") == "close" for _, headers, _ in expected]
        with service.access_log() as lines_together:
            for at in range(0, len(requests), BESIDE):
                group = slice(at, at + BESIDE)
                found = together(service, requests[group], ends[group])
                for request, one, other in zip(
                    requests[group], found, expected[group], strict=True
                ):
                    assert one == other, request
            assert counts(service) - between == between - start
        assert Counter(map(said, lines_together)) == Counter(map(said, lines_alone))
        assert service.services.in_flight.count == service.services.in_flight.bytes.total == 0
    statuses = Counter(int(line.split()[1]) for line, _, _ in expected)
    assert statuses[200] > REQUESTS // 8
    assert len(statuses) > 5


# Whatever ends it


HEAD = (
    b"POST /generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice-key\r\nContent-Type: "
    b"application/json\r\n"
)
ASKED = HEAD + b"Content-Length: 2\r\n\r\n{}"
JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}
OTHER = save(noise(9, 9))  # it is not of the model's size, so the codec pool decodes it
Ending = Callable[[Service, Gate], object]


@pytest.fixture(scope="module")
def small(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Gate]]:
    """A service with small limits, in which no image can be decoded; the quota of `slow` is used
    up.
    """

    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    keys = write_keys(
        tmp_path_factory.mktemp("keys"), {"alice": "infer", "slow": "infer"}, slow="1/m"
    )
    limits = {f"{what}_timeout_s": LIMIT_S for what in ("receive", "stream")}
    chosen = settings(models, api_keys_file=keys, max_body_bytes=4000, **limits)
    with pytest.MonkeyPatch.context() as patch, gated(patch, chosen, loop="asyncio") as found:
        patch.setattr(EncodedImage, "decode", fail)
        patch.setattr("service.server.protocol.LINGER_S", 0.01)  # of who closes a connection
        assert found[0].get("/models", headers=bearer("slow")).status_code == 200
        yield found


def sent(data: bytes) -> Ending:
    """The client sends this and reads a response, which may be one to its silence."""

    def end(service: Service, _: Gate) -> None:
        with Connection(service.address).send(data) as connection:
            service.until_readable(connection)
            connection.answer()

    return end


def post(
    path: str, key: str = "alice", headers: dict[str, str] | None = None, **options: Any
) -> Callable[[Service, Gate], httpx.Response]:
    return lambda service, _: service.post(path, headers=(headers or {}) | bearer(key), **options)


def stuck(end: Ending) -> Ending:
    """The model does not run meanwhile."""

    def with_gate(service: Service, gate: Gate) -> None:
        with gate:
            end(service, gate)

    return with_gate


def model_fails(service: Service, gate: Gate) -> None:
    gate.fails = True
    post("/generate", json={})(service, gate)
    gate.fails = False


def late(service: Service, gate: Gate) -> None:
    request = partial(
        post("/generate", headers={"X-Request-Timeout": f"{LIMIT_S}"}, json={}), service, gate
    )
    service.overdue(request, lambda: gate.entered.wait(PATIENCE_S))


def long_stream(service: Service, _: Gate) -> None:
    headers = {"Accept": "text/event-stream"} | bearer("alice")
    with service.client.stream(
        "POST", "/generate", headers=headers, json={"record": [0]}
    ) as response:
        for line in response.iter_lines():
            if line == "event: step":
                service.skip()


def leaves(service: Service, gate: Gate) -> None:
    with Connection(service.address).send(ASKED):
        assert gate.entered.wait(PATIENCE_S)
    service.until_in_flight(0)


def leaves_early(service: Service, _: Gate) -> None:
    with Connection(service.address).send(ASKED[:-1]):
        service.until_in_flight(1)
    service.until_in_flight(0)


def image_by_url(service: Service, _: Gate) -> None:
    service.get("/generate/alice.png", headers=bearer("alice"))


ENDINGS: dict[str, tuple[Ending, str, int, str | None]] = {
    "a response": (post("/generate", json={}), "/generate", 200, None),
    "an image by URL": (image_by_url, "/generate/{seed}.png", 200, None),
    "a large head": (sent(HEAD + b"a:\r\n" * 300), "unmatched", 431, "head_too_large"),
    "a slow head": (sent(HEAD), "unmatched", 408, "head_too_slow"),
    "a wrong head": (sent(ASKED.replace(b"Host", b"Other")), "/generate", 400, "malformed"),
    "a wrong body": (post("/generate", json={"n": 0}), "/generate", 422, "invalid_value"),
    "no such path": (post("/nope", json={}), "unmatched", 404, "not_found"),
    "no such method": (post("/models/grey", json={}), "/models/{name}", 405, "method_not_allowed"),
    "no key": (post("/generate", "nobody", json={}), "/generate", 401, "unauthorized"),
    "no quota": (post("/generate", "slow", json={}), "/generate", 429, "rate_limited"),
    "a large body": (post("/generate", content=bytes(4001)), "/generate", 413, "too_large"),
    "a body that grows": (
        post("/generate", headers=JSON, content=iter([b" " * 3000] * 2)),
        "/generate",
        413,
        "too_large",
    ),
    "a slow body": (sent(ASKED[:-1]), "/generate", 408, "body_too_slow"),
    "a client that leaves early": (leaves_early, "/generate", 499, None),
    "a client that leaves": (stuck(leaves), "/generate", 499, None),
    "the deadline": (stuck(late), "/generate", 504, "deadline_exceeded"),
    "a defect in a stage": (
        post("/project", headers=PNG, content=OTHER),
        "/project",
        500,
        "internal",
    ),
    "a defect of the model": (model_fails, "/generate", 500, "model_failure"),
    "an end of a stream": (stuck(long_stream), "/generate", 200, "deadline_exceeded"),
}


@pytest.mark.parametrize(("end", "endpoint", "status", "code"), ENDINGS.values(), ids=list(ENDINGS))
def test_a_request_leaves_one_line_and_is_counted_once(
    small: tuple[Service, Gate], end: Ending, endpoint: str, status: int, code: str | None
) -> None:
    service, gate = small
    before = counts(service)
    with service.access_log() as lines:
        end(service, gate)
        service.until(lambda: bool(lines) and service.get("/healthz").is_success)
        counted = counts(service) - before
    (line,) = lines
    assert (line["route"], line["status"], line.get("code")) == (endpoint, status, code)
    requests = [
        (dict(labels), value)
        for (name, labels), value in counted.items()
        if name == "ign_requests_total"
    ]
    assert [(labels["endpoint"], labels["status"], value) for labels, value in requests] == [
        (endpoint, f"{status // 100}xx", 1)
    ]
    errors = [
        (dict(labels)["code"], value)
        for (name, labels), value in counted.items()
        if "http_errors" in name
    ]
    assert errors == ([] if code is None else [(code, 1)])
    assert service.services.in_flight.count == service.services.in_flight.bytes.total == 0
    service.errors.clear()
