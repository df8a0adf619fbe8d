"""Servers that are slow, send too much, or something else: time and memory are bounded, errors are
the client's.
"""

import contextlib
import gzip
import json
import re
import socketserver
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ign_client import Client, IgnError, TimedOut, UnexpectedAnswer
from tests.helpers.pictures import noise, save
from tests.unit.sdk.clients import (
    CARD,
    IMAGE,
    SCORE,
    STEP,
    Ask,
    Canned,
    Piece,
    event,
    generated,
    limited,
    streamed,
)

PICTURE = save(noise(8, 8, seed=1))
ANSWER = json.dumps(generated()).encode()
MANY = 1000  # pieces, each after 20 ms: who waits only for the next one waits for 20 s
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(ANSWER) + MANY)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
COMMENTS = [b"c\r\n: a comment\n\r\n"] * MANY
FIRST = b"%x\r\n%b\r\n" % (len(event("step", **STEP)), event("step", **STEP))
SLOW: dict[str, list[bytes]] = {
    "status line": [HEAD[:12], *[b"x"] * MANY, HEAD[12:] + b" " * MANY + ANSWER],
    "informational": [*[b"HTTP/1.1 103 x\r\n\r\n"] * MANY, HEAD + b" " * MANY + ANSWER],
    "body": [HEAD, *[b" "] * MANY, ANSWER],
    "size of a chunk": [CHUNKED, b"1;", *[b"x"] * MANY, b"\r\n \r\n0\r\n\r\n"],
    "comments": [CHUNKED, *COMMENTS],
    "an event": [CHUNKED, b"6\r\ndata: \r\n", *[b"1\r\nx\r\n"] * MANY],
    "comments after an event": [CHUNKED, FIRST, *COMMENTS],
}


@contextlib.contextmanager
def server(pieces: Iterable[bytes]) -> Iterator[str]:
    """Sends the pieces slowly; without any it does not even read the request."""
    ended = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if not pieces:
                ended.wait()
            self.request.recv(1 << 16)
            with contextlib.suppress(OSError):  # the client has left
                for piece in pieces:
                    self.request.sendall(piece)
                    if ended.wait(0.02):
                        return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            ended.set()
            listening.shutdown()
            thread.join()


@pytest.mark.parametrize("case", SLOW)
@pytest.mark.parametrize("options", [{"deadline": 0.2}, {"timeout": 0.1}], ids=str)
def test_timeout_and_deadline_hold_however_slowly_a_server_sends(
    ask: Ask, case: str, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask.settings = {"max_retries": 0}  # and a clock that runs
    monkeypatch.setattr("ign_client._stream.EVENT_S", 0.2)
    monkeypatch.setattr("ign_client._wire.GRACE_S", 0.1)
    method = "stream_generate" if "event" in case or "comments" in case else "generate"
    limits = r"in time: (timeout=.* of an attempt, deadline=.* of the call|0.2 s without an event)"
    with server(SLOW[case]) as url, pytest.raises(TimedOut, match=limits):
        ask(url, method, **options)


@pytest.mark.parametrize(
    ("pieces", "images"), [([], bytes(64 << 20)), (SLOW["body"], [PICTURE] * 40)]
)
def test_a_deadline_holds_while_a_request_is_sent_and_for_all_of_several(
    ask: Ask, pieces: Any, images: Any
) -> None:
    ask.settings = {"max_retries": 0}
    with server(pieces) as url, pytest.raises(TimedOut):
        ask(url, "project", images, deadline=0.3)


def test_compressed_responses_are_neither_asked_for_nor_read(ask: Ask) -> None:
    bomb = streamed(gzip.compress(b" " * (1 << 20) + ANSWER))[1]
    to = Canned(httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=bomb))
    with pytest.raises(UnexpectedAnswer, match="gzip"):
        ask(to, "generate")
    assert (to.asked[0].headers["Accept-Encoding"], bomb.closed) == ("identity", True)


@pytest.mark.parametrize(
    ("method", "media"), [("generate", "application/json"), ("stream_generate", "")]
)
def test_a_response_without_end_is_left(
    ask: Ask, method: str, media: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ign_client._wire.MAX_ANSWER_BYTES", 10_000)
    read: list[int] = []
    pieces: list[Piece] = [event("step", **STEP), lambda: read.append(1)]
    response, body = streamed(*pieces * 1000)
    response.headers["Content-Type"] = media or response.headers["Content-Type"]
    with pytest.raises(UnexpectedAnswer, match="10000 bytes"):
        ask(Canned(response), method)
    assert body.closed
    assert 50 < len(read) < 150


# Responses that are not what they should be

VALUES = ["null", "true", "-1", "7", "1" + "0" * 400, "1e308", "NaN", "[]", "[[]]", "{}"]
VALUES += [json.dumps(text) for text in ("", "x", "npy", "\x1b[2J\n\t\u202e\ud800", "9" * 5000)]
PROBLEM = {
    "code": "x",
    "detail": "images.7: no",
    "errors": [{"field": "image", "message": "no"}],
}
# A method, its arguments, and a correct response.
CALLS: list[tuple[str, Any, Any]] = [
    ("generate", [], generated(images=[IMAGE | {"trajectory": [STEP]}])),
    ("project", [PICTURE], generated()),
    ("score", [PICTURE], generated(images=[SCORE])),
    ("latent_interpolate", [[1, 2]], generated(images=[IMAGE, IMAGE | {"index": 1}])),
    ("models", [], limited([CARD]).json()),
    ("model", ["toy"], CARD),
    ("ready", [], {"status": "ready"}),
    ("generate_as", ["png"], None),
    ("generate_as", ["npy"], None),
    ("stream_generate", [], generated()),
]
GIANT = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % 10**14
)
DAMAGED = [
    b"",
    GIANT.ljust(127) + b"\n",
    b"DDS \x7c" + bytes(123),
    PICTURE[:60],
    PICTURE[:8] + bytes(100),
]
RAW = {
    "Content-Type": "image/png",
    "X-IGN-Model": "toy/1@0",
    "X-Request-ID": "x",
    "X-IGN-Steps": "1,1",
}
RAW |= {
    "X-IGN-Distance": "0.5,0.5",
    "Server-Timing": "decode;dur=1.0, queue;dur=1, compute;dur=1, encode;dur=1",
}


@st.composite
def damaged(draw: st.DrawFn, document: Any) -> bytes:
    """The text of a document with other names and values; or of none."""
    text = json.dumps(document)
    for _ in range(draw(st.integers(0, 3))):
        if tokens := [*re.finditer(r'"[^"]*"|[\w.-]+', text)]:
            token = draw(st.sampled_from(tokens))
            text = text[: token.start()] + draw(st.sampled_from(VALUES)) + text[token.end() :]
    return draw(
        st.sampled_from([text, text, text, text[:-1], "[" * 100_000, '{"a":' * 100_000])
    ).encode()


@st.composite
def responses(draw: st.DrawFn, method: str, document: Any) -> httpx.Response:
    """A response to a method, or a problem, with a header that is wrong, too."""
    content = draw(st.sampled_from([document, document, STEP, PROBLEM]).flatmap(damaged))
    if method == "stream_generate":
        name = draw(st.sampled_from([b"step", b"done", b"error", b"x\x1b"]))
        return streamed(event("step", **STEP), b"event: %b\ndata: %b\n\n" % (name, content))[0]
    if method == "generate_as":
        content = draw(st.sampled_from(DAMAGED))
    wrong = {
        draw(st.sampled_from([*RAW, "Retry-After"])): draw(
            st.sampled_from(["", "1e999", "Mon, 1", "9" * 5000])
        )
    }
    status = draw(st.sampled_from([200, 200, 422, 503]))
    return httpx.Response(status, content=content, headers=RAW | {"Retry-After": "1"} | wrong)


@pytest.mark.parametrize(("method", "arguments", "document"), CALLS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_only_errors_of_the_client_leave_a_method(
    method: str, arguments: Any, document: Any, data: st.DataObject
) -> None:
    response = data.draw(responses(method, document))
    with Client(transport=Canned(response), max_retries=0) as client, contextlib.suppress(IgnError):
        result = getattr(client, method)(*arguments)
        repr(result)
        for each in (result, *(result if hasattr(result, "__iter__") else ())):
            for use in ("_repr_html_", "to_pil", "to_numpy"):
                with contextlib.suppress(IgnError):
                    getattr(each, use, str)()
