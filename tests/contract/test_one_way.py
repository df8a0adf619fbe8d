"""Every request goes one way: whatever headers it has, whatever runs beside it, and whatever ends it."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from service.images.decode import EncodedImage
from tests.contract.data import PICTURE, b64, latents
from tests.contract.harness import PATIENCE_S, Gate, Service, bearer, gated, serving, settings, write_keys
from tests.contract.oip import INFER, LENGTH, as_binary
from tests.helpers.connection import Connection
from tests.helpers.gateways import GATEWAYS, TRACEPARENT
from tests.helpers.pictures import noise, save

REQUESTS: Final = 400
BESIDE: Final = 16  # requests of one turn of the event loop
# Families of metrics that count; the others measure time, or when something happened.
NAMES: Final = (
    "requests http_errors caller_requests caller_row_steps row_steps scheduled_requests rejected_requests distance "
    "drift early_exits"
)
COUNTED: Final = {f"ign_{name}" for name in NAMES.split(" ")}


def counts(service: Service) -> Counter[tuple[str, tuple[tuple[str, str], ...]]]:
    service.get("/healthz")  # the event loop has counted the requests before this one
    found: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
    for family in text_string_to_metric_families(service.services.metrics.render()[0].decode()):
        for sample in family.samples if family.name in COUNTED else ():
            if not (sample.name.endswith("_sum") or sample.labels.get("endpoint") in ("/healthz", "/readyz")):
                found[sample.name, tuple(sorted(sample.labels.items()))] += int(sample.value)
    return found


def said(line: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A line of the access log without what differs between equal requests."""
    differs = {"time", "message", "request_id", "trace_id", "span_id", "response_bytes"}
    return tuple((name, value if "ms" not in name else 0) for name, value in line.items() if name not in differs)


# Whatever headers it has


FORM = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + PICTURE + b"\r\n"
FIELD = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
MULTIPART = "multipart/form-data; boundary=b"
TENSOR, TENSOR_HEAD = as_binary(latents(1, n=2), parameters={"binary_data_output": True})
SHEET = {"seed": 1, "n": 3, "scale": 2, "columns": 3, "gap": 1}
PLAIN: dict[str, tuple[str, str, bytes]] = {
    "JSON": ("/generate", "application/json", b'{"seed": 1}'),
    "JSON with a charset": ("/generate", "application/json; charset=utf-8", b'{"seed": 1}'),
    "JSON of a sheet": ("/generate", "application/json", json.dumps(SHEET).encode()),
    "a raw image": ("/project", "image/png", PICTURE),
    "a raw image and a query": ("/project?scale=2&columns=1&gap=1", "image/png", PICTURE),
    "a form": ("/project", MULTIPART, FORM + b"--b--\r\n"),
    "a form with options": ("/project", MULTIPART, FORM + FIELD % (b"scale", b"2") + b"--b--\r\n"),
    "a tensor": (INFER, "application/octet-stream", TENSOR),
}


def seen(service: Service, name: str, headers: dict[str, str]) -> tuple[Any, ...]:
    """What the client and the log see of a request."""
    path, kind, body = PLAIN[name]
    own = {"Content-Type": kind, "Accept": "image/png"} | ({LENGTH: str(TENSOR_HEAD)} if path == INFER else {})
    with service.access_log() as lines:
        response = service.client.post(path, content=body, headers=own | headers)
        service.until(lambda: bool(lines) and service.get("/healthz").is_success)
    (line,) = lines
    assert line["response_bytes"] == len(response.content)
    told = {name: value for name, value in response.headers.items() if name.startswith("x-ign") or "content" in name}
    return response.status_code, response.content, told, said(line)


@pytest.mark.parametrize("name", PLAIN)
def test_headers_of_gateways_and_browsers_change_nothing(service: Service, name: str) -> None:
    before = counts(service)
    plain = seen(service, name, {})
    assert plain[0] == 200
    between = counts(service)
    for gateway, headers in GATEWAYS.items():
        assert seen(service, name, headers) == plain, gateway
    once, all_together = between - before, counts(service) - between
    assert all_together == {labels: value * len(GATEWAYS) for labels, value in once.items()}


def test_other_spellings_of_a_request_are_the_same_request(service: Service) -> None:
    for one, other in (("JSON", "JSON with a charset"), ("a raw image", "a form")):
        assert seen(service, one, {})[1] == seen(service, other, {})[1]
    assert seen(service, "a raw image and a query", {})[1] == seen(service, "a form with options", {})[1]


# Whatever runs beside it


OTHER_PICTURES: Final = [
    save(Image.fromarray(noise(8, 8, 3)), "PNG"),
    save(Image.fromarray(noise(8, 8, 3)).convert("RGBA"), "PNG"),
    save(Image.fromarray(noise(8, 8)), "JPEG"),
    save(Image.fromarray(noise(200, 150)), "PNG"),
    PICTURE[:-20],
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
            key = self.pick(*["Bearer alice-key"] * 9, "bearer  alice-key", "Bearer ops-key", "Bearer x", "Basic x")
            headers.append(("Authorization", key))
        if self.chance(0.03):
            headers.append(("Transfer-Encoding", "chunked"))
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        else:
            headers.append(("Content-Length", str(len(body))))
        method = "GET" if self.chance(0.02) else "POST"
        head = "".join(f"{name}: {value}\r\n" for name, value in headers)
        made: bytes = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode("latin-1") + body
        return made

    def odd_header(self) -> tuple[str, str]:
        found: tuple[str, str] = self.pick(
            ("X-Request-ID", self.pick("abc.1", "not valid!", "", "é")),
            ("X-Request-Timeout", self.pick("5", "0", "-1", "abc", "1e3", "999999999")),
            ("Accept", self.pick("image/png", "*/*", "nonsense", "")),
            ("Origin", self.pick("https://app.example", "https://other.example")),
            ("Content-Encoding", self.pick("gzip", "identity")),
            ("traceparent", TRACEPARENT),
            ("Content-Type", "application/json"),
            *self.pick(*GATEWAYS.values()).items(),
        )
        return found

    def accept(self, *media: str) -> list[tuple[str, str]]:
        chosen = self.pick("image/png", "image/png", "application/json", None, *media)
        return [] if chosen is None else [("Accept", chosen)]

    def changed(self, share: float, **values: tuple[Any, ...]) -> dict[str, Any]:
        return {name: self.pick(*choices) for name, choices in values.items() if self.chance(share)}

    def options(self) -> dict[str, Any]:
        return {"steps": self.pick(1, 1, 2, 3)} | self.changed(
            0.03,
            steps=(0, 9, "x", 10**30),
            model=("grey", "grey/2", "colour", "absent", 7),
            format=("npy", "webp", "gif"),
            tolerance=(0.5, 0, 1e-9),
            score=(True, False, "yes"),
            record=([1], [0, 1], [5], []),
            unknown=(1,),
            scale=(2, 0),
            columns=(1,),
            gap=(1,),
        )

    def generate(self) -> tuple[str, list[tuple[str, str]], bytes]:
        body = self.options() | {"seed": self.pick(1, 2, 3)}
        body |= self.changed(0.05, n=(2, 3, 5, 300), seed=(-1, 1.5), offset=(4, -1), noise_scale=(0.5, 9))
        content = json.dumps(body).encode()
        if self.chance(0.05):
            content = self.pick(b"[]", b"{", b'{"seed": NaN}', b"\xff", b'{"seed": 1, "seed": 2}')
        kind = self.pick(*["application/json"] * 8, "application/json; charset=utf-8", "text/plain")
        media = ("application/x-npy", "image/webp", "image/jpeg", "text/event-stream", "image/gif", "text/html")
        path = self.pick(*["/generate"] * 9, "/generate?steps=1")
        return path, [("Content-Type", kind), *self.accept(*media)], content

    def picture(self) -> bytes:
        found: bytes = PICTURE if self.chance(0.7) else self.pick(*OTHER_PICTURES)
        return found

    def raw(self) -> tuple[str, list[tuple[str, str]], bytes]:
        options = self.options() | self.changed(0.1, strength=(0, 0.5, 2))
        query = "&".join(f"{name}={str(value).strip('[]').replace(' ', '')}" for name, value in options.items())
        path = f"/project?{query}" + (self.pick("#x", "&steps=2", "&%20", "&a") if self.chance(0.05) else "")
        kind = self.pick(*["image/png"] * 8, "image/jpeg", "image/gif", "image/png; x=1")
        return path, [("Content-Type", kind), *self.accept("application/x-npy", "image/webp")], self.picture()

    def json(self) -> tuple[str, list[tuple[str, str]], bytes]:
        body = self.options() | {"images": [b64(self.picture()) for _ in range(self.pick(1, 1, 2, 5, 0))]}
        body |= self.changed(0.2, mask=(b64(PICTURE),))
        path = self.pick("/project", "/project", "/score")
        return path, [("Content-Type", "application/json"), *self.accept()], json.dumps(body).encode()

    def form(self) -> tuple[str, list[tuple[str, str]], bytes]:
        body = FORM.replace(PICTURE, self.picture()) * self.pick(1, 1, 2)
        body += b"".join(FIELD % (name.encode(), str(value).encode()) for name, value in self.options().items())
        body += b"" if self.chance(0.05) else b"--b--\r\n"
        return "/project", [("Content-Type", self.pick(*[MULTIPART] * 9, "multipart/form-data")), *self.accept()], body

    def infer(self) -> tuple[str, list[tuple[str, str]], bytes]:
        rows = latents(self.pick(1, 2), n=self.pick(1, 1, 1, 2))
        parameters: dict[str, Any] = {"steps": self.pick(1, 2)}
        parameters |= self.changed(0.7, binary_data_output=(True,)) | self.changed(0.05, steps=(0,), unknown=(1,))
        body, length = as_binary(rows, parameters=parameters, **({"id": "x"} if self.chance(0.2) else {}))
        if self.chance(0.05):
            body = self.pick(body[:-1], body[:10], body + b"x")
        if self.chance(0.05):
            length = self.pick(0, 10**6, length - 1)
        path = self.pick(*[INFER] * 5, "/v2/models/grey/versions/2/infer", "/v2/models/absent/infer")
        return path, [(LENGTH, str(length)), *self.accept()], body


Reply = tuple[bytes, tuple[tuple[str, str], ...], bytes]


def reply(stream: Any) -> Reply:
    """A response without ids, dates and timings."""
    line, headers = stream.readline(), dict[str, str]()
    while (header := stream.readline().strip()) != b"":
        name, _, value = header.decode("latin-1").partition(": ")
        headers[name] = value
    if "content-length" in headers:
        body = stream.read(int(headers["content-length"]))
    else:
        body = b""
        while size := int(stream.readline(), 16):
            body += stream.read(size)  # without the end of the chunk: where a stream is cut is a matter of time
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
    return line, tuple(sorted(headers.items())), re.sub(rb'"request_id": ?"[0-9a-f]{32}"', b"", body)


def alone(service: Service, request: bytes) -> Reply:
    with Connection(service.address).send(request) as connection:
        return reply(connection.stream)


def together(service: Service, requests: list[bytes], ends: list[bool]) -> list[Reply]:
    """Send requests at once, pipelined in pairs unless the connection ends with the response to the first."""
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
def test_a_request_is_answered_alike_alone_and_beside_others(models: Path, keys: Path, seed: int) -> None:
    made = Requests(seed)
    requests = [made.request() for _ in range(REQUESTS // 2)]
    more = {"api_keys_file": keys} if seed == 8 else {"trusted_proxies": ("127.0.0.0/8",)}
    with serving(settings(models, max_steps=8, cors_origins=("https://app.example",), **more)) as service:
        start = counts(service)
        with service.access_log() as lines_alone:
            expected = [alone(service, request) for request in requests]
            between = counts(service)
        ends = [dict(headers).get("connection") == "close" for _, headers, _ in expected]
        with service.access_log() as lines_together:
            for at in range(0, len(requests), BESIDE):
                group = slice(at, at + BESIDE)
                found = together(service, requests[group], ends[group])
                for request, one, other in zip(requests[group], found, expected[group], strict=True):
                    assert one == other, request
            assert counts(service) - between == between - start
        assert Counter(map(said, lines_together)) == Counter(map(said, lines_alone))
        assert service.services.in_flight.count == service.services.in_flight.bytes == 0
    statuses = Counter(int(line.split()[1]) for line, _, _ in expected)
    assert statuses[200] > REQUESTS // 8
    assert len(statuses) > 5


# Whatever ends it


HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice-key\r\nContent-Type: application/json\r\n"
ASKED = HEAD + b"Content-Length: 2\r\n\r\n{}"
LATE = {"X-Request-Timeout": "0.1"}
JSON, PNG = {"Content-Type": "application/json"}, {"Content-Type": "image/png"}
Ending = Callable[[Service, Gate], object]


@pytest.fixture(scope="module")
def small(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Gate]]:
    """A service with small limits, in which no image can be decoded; the quota of `slow` is used up."""

    def fail(_: EncodedImage) -> None:
        raise RuntimeError("a defect")

    keys = write_keys(tmp_path_factory.mktemp("keys"), {"alice": "infer", "slow": "infer"}, slow="1/m")
    limits = {"max_body_bytes": 4000, "body_timeout_s": 0.1, "stream_timeout_s": 0.1, "head_timeout_s": 0.2}
    with pytest.MonkeyPatch.context() as patch, gated(patch, settings(models, api_keys_file=keys, **limits)) as found:
        patch.setattr(EncodedImage, "decode", fail)
        assert found[0].get("/models", headers=bearer("slow")).status_code == 200
        yield found


def sent(data: bytes) -> Ending:
    """The client sends this and reads a response."""

    def end(service: Service, _: Gate) -> None:
        with Connection(service.address).send(data) as connection:
            connection.answer()

    return end


def post(path: str, key: str = "alice", headers: dict[str, str] | None = None, **options: Any) -> Ending:
    return lambda service, _: service.client.post(path, headers=(headers or {}) | bearer(key), **options)


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


def leaves(service: Service, gate: Gate) -> None:
    with Connection(service.address).send(ASKED):
        assert gate.entered.wait(PATIENCE_S)
    service.until_in_flight(0)


def leaves_early(service: Service, _: Gate) -> None:
    with Connection(service.address).send(ASKED[:-1]):
        service.until_in_flight(1)
    service.until_in_flight(0)


GROWING = iter([b" " * 3000] * 2)
STREAM = {"Accept": "text/event-stream"}
ENDINGS: dict[str, tuple[Ending, str, int, str | None]] = {
    "a response": (post("/generate", json={}), "/generate", 200, None),
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
    "the deadline": (stuck(post("/generate", headers=LATE, json={})), "/generate", 504, "deadline_exceeded"),
    "a defect in a stage": (post("/project", headers=PNG, content=PICTURE), "/project", 500, "internal"),
    "a defect of the model": (model_fails, "/generate", 500, "model_failure"),
    "an end of a stream": (
        stuck(post("/generate", headers=STREAM, json={"record": [0]})),
        "/generate",
        200,
        "deadline_exceeded",
    ),
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
    requests = [(dict(labels), value) for (name, labels), value in counted.items() if name == "ign_requests_total"]
    assert [(labels["endpoint"], labels["status"], value) for labels, value in requests] == [
        (endpoint, f"{status // 100}xx", 1)
    ]
    errors = [(dict(labels)["code"], value) for (name, labels), value in counted.items() if "http_errors" in name]
    assert errors == ([] if code is None else [(code, 1)])
    assert service.services.in_flight.count == service.services.in_flight.bytes == 0
    service.errors.clear()
