"""Raw connections of clients that send what no client should, and what others notice of them."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.message import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED
from tests.contract.data import PICTURE, latents
from tests.contract.harness import (
    LIMIT_S,
    PATIENCE_S,
    Service,
    gated,
    held,
    problem,
    serving,
    settings,
)
from tests.contract.oip import encoded
from tests.helpers.connection import Connection

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
ASKED = (
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: "
    b"application/json\r\nContent-Length: 2\r\n\r\n{}"
)
BUNDLE = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = (
    b"POST /generate HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABk\r\nContent-Type: application/json\r\n"
    b'Content-Length: 10\r\n\r\n{"seed":7}'
)
CHUNKED = (
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: "
    b"application/json\r\nTransfer-Encoding: chunked\r\n"
)


@pytest.fixture(scope="module")
def quick(models: Path) -> Iterator[Service]:
    """A service whose time the tests skip."""
    with serving(settings(models, receive_timeout_s=LIMIT_S), loop="asyncio") as service:
        yield service


@pytest.fixture
def connection(service: Service) -> Iterator[Connection]:
    with Connection(service.address) as made:
        yield made


def rejected(answer: tuple[int, dict[str, str], bytes], status: int, code: str) -> None:
    """The response is a problem document, and the connection ends with it."""
    got, headers, body = answer
    document = json.loads(body)
    assert (got, document["status"], document["code"]) == (status, status, code)
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert headers["x-request-id"] == document["request_id"]


ENDLESS = (
    (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", b"b"),
    (b"GET /", b"b"),
    (b"GET / HTTP/1.1\r\nHost: x\r\n", b"a:\r\n"),
    (CHUNKED + b"\r\n2\r\n{}\r\n0\r\n", b"a:\r\n"),
    (CHUNKED + b"\r\n2\r\n{}\r\n0\r\nX-A: ", b"b"),
    (CHUNKED + b"\r\n2;", b"b"),
)
MOST = 64 << 20


def test_an_endless_head_is_not_read(service: Service) -> None:
    """Whether the headers do not end, one of them, the URL, the trailers or part of a body."""

    def send_endlessly(start: bytes, part: bytes) -> int:
        """Send until the service stops reading; the number of bytes that it took."""
        sent = 0
        with Connection(service.address) as connection, suppress(ConnectionError, TimeoutError):
            connection.socket.settimeout(2.0)
            connection.send(start)
            while sent < MOST:
                connection.send(part * (65536 // len(part)))
                sent += 65536
        return sent

    with ThreadPoolExecutor(len(ENDLESS)) as pool:
        sending = [pool.submit(send_endlessly, *each) for each in ENDLESS]
        for each in sending:
            assert service.get("/healthz").status_code == 200
            assert each.result() < 16 << 20  # most of it in buffers of the kernel


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET /" + b"b" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * MAX_HEADERS + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 3 * MAX_HEADERS,  # unfinished
        b"GET /" + b"b" * 2 * MAX_HEAD_BYTES,
    ],
    ids=["header", "URL", "headers", "unfinished headers", "unfinished URL"],
)
def test_a_large_head_is_431(service: Service, connection: Connection, head: bytes) -> None:
    before = service.metric("ign_closed_connections_total", reason="head_too_large")
    rejected(connection.send(head).answer(), 431, "head_too_large")
    assert connection.is_over()
    assert service.metric("ign_closed_connections_total", reason="head_too_large") == before + 1


def test_a_head_just_below_the_limit_is_answered(connection: Connection) -> None:
    start = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: "
    head = start + b"b" * (MAX_HEAD_BYTES - len(start) - 64) + b"\r\n\r\n"
    for _ in range(3):
        assert connection.send(head).answer()[0] == 200
    head = start + b"b" * (MAX_HEAD_BYTES // 2) + b"\r\n\r\n"
    connection.send(head * 8)  # more than the limit, but in many heads
    assert [connection.answer()[0] for _ in range(8)] == [200] * 8


@pytest.mark.parametrize("part", [b"", b"b"], ids=["silence", "bytes that trickle"])
def test_a_head_that_does_not_end_is_408(quick: Service, part: bytes) -> None:
    with Connection(quick.address) as connection:
        connection.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ")
        while not connection.is_readable():
            connection.send(part)
            quick.skip(10.0)
        rejected(connection.answer(), 408, "head_too_slow")
        assert connection.is_over()


def test_a_silent_connection_is_closed_and_on_a_used_one_the_time_begins_with_the_head(
    quick: Service,
) -> None:
    with (
        Connection(quick.address) as used,
        Connection(quick.address) as silent,
        Connection(quick.address) as empty,
        Connection(quick.address) as idle,
    ):
        empty.send(b"\r\n")
        assert idle.send(HEALTH).answer()[0] == 200
        while not (silent.is_readable() and empty.is_readable()):
            assert used.send(HEALTH).answer()[0] == 200
            quick.skip(10.0)
        assert silent.is_over()
        assert empty.is_over()
        quick.until_readable(used.send(HEALTH[:-2]))
        rejected(used.answer(), 408, "head_too_slow")
        assert idle.is_over()


def test_pipelined_requests_are_answered_in_order(connection: Connection) -> None:
    heads = [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-ID: %d\r\n\r\n" % i
        for i in range(MAX_PIPELINED)
    ]
    connection.send(b"".join(heads))
    assert [connection.answer()[1]["x-request-id"] for _ in heads] == [
        str(i) for i in range(len(heads))
    ]
    bodies = ASKED * 8
    connection.send(bodies)
    assert [connection.answer()[0] for _ in range(8)] == [200] * 8


def test_a_long_pipeline_is_closed(service: Service, connection: Connection) -> None:
    before = service.metric("ign_closed_connections_total", reason="pipelining")
    connection.send(HEALTH * 4000)
    with suppress(ConnectionError):
        while connection.stream.read(65536):
            pass
    assert service.metric("ign_closed_connections_total", reason="pipelining") == before + 1


def test_nothing_is_read_while_requests_wait(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies of waiting requests would need memory without limit."""
    large = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 16000000\r\n\r\n"
    with (
        held(monkeypatch, settings(models)) as (service, gate),
        Connection(service.address) as connection,
    ):
        connection.send(ASKED)
        service.until_in_flight(2)
        connection.send(ASKED + large)
        # meanwhile the first request begins to watch whether its client leaves
        connection.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.socket.sendall(bytes(16 << 20))
        gate.opened.set()
        connection.socket.settimeout(PATIENCE_S)
        assert connection.answer()[0] == 200


def test_beyond_the_limit_the_oldest_idle_connection_makes_room(models: Path) -> None:
    """Of the address that has the most."""
    with serving(settings(models, max_open_connections=5)) as service, ExitStack() as stack:
        assert service.metric("ign_open_connections_limit") == 5
        other = stack.enter_context(Connection(service.address, "127.0.0.2"))
        assert other.send(HEALTH).answer()[0] == 200
        connections = [stack.enter_context(Connection(service.address)) for _ in range(4)]
        for connection in connections[1:]:
            assert connection.send(HEALTH).answer()[0] == 200
        newest = stack.enter_context(Connection(service.address))
        assert newest.send(HEALTH).answer()[0] == 200
        for connection in (connections[-1], other):
            assert connection.send(HEALTH).answer()[0] == 200
        assert connections[0].is_over()
        assert service.metric("ign_closed_connections_total", reason="limit") >= 1


def test_connections_that_await_an_answer_stay(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        gated(monkeypatch, settings(models, max_open_connections=3)) as (service, gate),
        ExitStack() as stack,
    ):
        service.client.close()  # which holds a connection
        with gate:
            busy = [stack.enter_context(Connection(service.address)).send(ASKED) for _ in range(3)]
            service.until(lambda: service.services.in_flight.count == 3)
            with Connection(service.address) as one_more:
                assert one_more.is_over()
        assert [connection.answer()[0] for connection in busy] == [200] * 3


@pytest.mark.parametrize("requests", [[ASKED], [ASKED, HEALTH, ASKED], []])
@pytest.mark.parametrize("rest", [b"", ASKED[:-1], ASKED[:20]])
def test_a_client_that_has_closed_its_sending_half_is_answered(
    connection: Connection, requests: list[bytes], rest: bytes
) -> None:
    """Half a request gets no response."""
    connection.send(b"".join(requests) + rest)
    connection.socket.shutdown(socket.SHUT_WR)
    assert [connection.answer()[0] for _ in requests] == [200] * len(requests)
    assert connection.is_over()


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400, "malformed"),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"),
        (b"\x16\x03\x01 TLS\r\n\r\n", 400, "malformed"),
        (b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n", 400, "malformed"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400, "malformed"),
        (CHUNKED.replace(b"1.1", b"1.0") + b"\r\n0\r\n\r\n", 400, "malformed"),
        (CHUNKED + b"\r\nnonsense\r\n", 400, "malformed"),
        (CHUNKED + b"Expect: 100-continue\r\n\r\nnonsense\r\n", 400, "malformed"),
        (CHUNKED + b"\r\n2\r\n{}\r\n0\r\n" + b"a:\r\n" * 3 * MAX_HEADERS, 431, "head_too_large"),
        (
            CHUNKED.replace(b"chunked", b"gzip, chunked") + b"\r\n2\r\n{}\r\n0\r\n\r\n",
            501,
            "not_supported",
        ),
        (CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400, "malformed"),
        (
            ASKED.replace(
                b"Content-Length",
                b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\nContent-Length",
            ),
            415,
            "unsupported_media_type",
        ),
    ],
)
def test_heads_that_are_wrong(
    service: Service, connection: Connection, head: bytes, status: int, code: str
) -> None:
    rejected(connection.send(head).answer(), status, code)
    assert connection.is_over()
    assert service.metric("ign_http_errors_total", code=code) >= 1


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.0\r\n\r\n",
        CHUNKED + b"\r\n2\r\n{}\r\n0\r\nX-Request-ID: trailer\r\n\r\n",
        # of no effect in HTTP/1.0
        ASKED.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nExpect: 100-continue\r\n"),
    ],
)
def test_heads_that_are_right(connection: Connection, head: bytes) -> None:
    status, headers, _ = connection.send(head).answer()
    assert status == 200
    assert headers["x-request-id"] != "trailer"


@pytest.mark.parametrize("cut", [0, 40, UPGRADE.index(b"{"), len(UPGRADE) - 1])
def test_an_upgrade_is_ignored_and_the_body_is_read(
    service: Service, connection: Connection, cut: int
) -> None:
    connection.send(UPGRADE[:cut])
    assert service.get("/healthz").status_code == 200  # so the parts are read one by one
    connection.send(UPGRADE[cut:] + UPGRADE * 200 + HEALTH)
    for _ in range(MAX_PIPELINED):
        status, headers, _ = connection.answer()
        assert (status, headers["x-ign-seed"]) == (200, "7")


@pytest.mark.parametrize("before", [1, 3])
@pytest.mark.parametrize(
    "wrong",
    [
        b"BAD\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n" + bytes(5000),
        b"GET http://h HTTP/1.1\r\nHost: x\r\n\r\n",
        CHUNKED + b"\r\nnonsense\r\n",
        b"\r\n" * MAX_HEAD_BYTES,
    ],
)
def test_what_comes_before_a_wrong_head_is_answered(
    connection: Connection, before: int, wrong: bytes
) -> None:
    connection.send(ASKED * before + wrong)
    assert [connection.answer()[0] for _ in range(before)] == [200] * before
    status, headers, _ = connection.answer()
    assert status == (431 if wrong.startswith(b"\r\n") else 400)
    assert headers["connection"] == "close"
    assert connection.is_over()


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/project", 413)])
def test_who_still_sends_when_the_connection_closes_gets_the_answer(
    connection: Connection, path: str, status: int
) -> None:
    length = 24 << 20
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: image/png\r\n"
    connection.send(f"{head}Content-Length: {length}\r\n\r\n".encode())
    for _ in range(length >> 16):
        connection.send(bytes(1 << 16))
    connection.send(HEALTH)
    assert connection.answer()[0] == status
    assert connection.is_over()


def test_who_does_not_read_holds_no_place(models: Path) -> None:
    with serving(settings(models), loop="asyncio") as service, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(service.address)
        client.sendall(BUNDLE * 20)
        service.until(lambda: service.metric("ign_requests_in_flight") == 1)
        service.skip()
        service.until(
            lambda: service.metric("ign_closed_connections_total", reason="send_timeout") == 1
        )
        service.until(lambda: service.metric("ign_requests_in_flight") == 0)


def test_the_deadline_of_a_pipelined_request_counts_from_its_head(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        gated(monkeypatch, settings(models), loop="asyncio") as (service, gate),
        gate,
        Connection(service.address) as connection,
    ):
        connection.send(
            ASKED + ASKED.replace(b"Host: x", b"Host: x\r\nX-Request-Timeout: %d" % LIMIT_S)
        )
        assert gate.entered.wait(PATIENCE_S)
        service.skip()
        gate.opened.set()
        assert [connection.answer()[0] for _ in range(2)] == [200, 504]


PAGES: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},  # of a sandbox
    {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
]
REBOUND: list[dict[str, str]] = [  # a name that resolves to the service
    {"Host": "evil.example", "Origin": "http://evil.example"},
    {"Host": "evil.example:80"},
]
OWN: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://app.example"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://proxy"},
    *(
        {"Host": host} | origin
        for host in ("127.0.0.1:8000", "localhost:1", "[::1]")
        for origin in ({}, {"Origin": f"http://{host}"})
    ),
]
SIMPLE = {"Content-Type": "text/plain"}
FORM = {"files": {"image": ("x.png", PICTURE)}, "data": {"prompt": "x"}}
Asked = tuple[str, dict[str, Any]]
RUNS: list[Asked] = [
    ("/v1/images/generations", {"content": b'{"prompt": "x"}', "headers": SIMPLE}),
    ("/v1/images/edits", FORM),
    ("/v2/models/grey/infer", {"content": encoded(latents(1)), "headers": SIMPLE}),
    ("/project", {"files": FORM["files"]}),
]
CHANGES: list[Asked] = [
    (f"/v2/repository/{path}", {}) for path in ("index", "models/grey/load", "models/colour/unload")
]


def asked(service: Service, request_: Asked, headers: dict[str, str]) -> httpx.Response:
    """What a browser sends without asking first, because it is simple."""
    path, options = request_
    return service.post(path, **options | {"headers": options.get("headers", {}) | headers})


def test_other_sites_may_neither_run_nor_change_models_without_keys(service: Service) -> None:
    for request_ in RUNS + CHANGES:
        for headers in PAGES + (REBOUND if request_ in CHANGES else []):
            assert asked(service, request_, headers).status_code == 403
    assert service.get("/models/colour").status_code == 200


def test_nobody_changes_the_models_of_a_page_for_strangers(models: Path) -> None:
    with serving(settings(models, public=True)) as public:
        for request_ in CHANGES:
            assert asked(public, request_, {}).status_code == 403
        assert asked(public, RUNS[-1], {}).status_code == 200


def test_own_and_allowed_sites_may(service: Service, models: Path) -> None:
    """With `*` in `IGN_CORS_ORIGINS`, all may run models, and none may change them."""
    for request_ in (*RUNS, CHANGES[0]):
        for headers in OWN:
            assert asked(service, request_, headers).status_code == 200, (request_, headers)
    with serving(settings(models, cors_origins=("*",))) as open_to_all:
        for request_ in RUNS:
            assert asked(open_to_all, request_, PAGES[1]).status_code == 200
        problem(asked(open_to_all, CHANGES[1], PAGES[2]), 403, "forbidden")
