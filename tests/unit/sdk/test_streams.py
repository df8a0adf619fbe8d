"""Event streams: chunks cut anywhere, framed in every way the standard allows; events, errors, and
closing.
"""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ign_client import (
    AsyncClient,
    Client,
    Done,
    Progress,
    ServiceFailed,
    Step,
    Unavailable,
    UnexpectedAnswer,
)
from ign_client._stream import Decoder
from tests.contract.harness import Service
from tests.unit.sdk.clients import IMAGE, STEP, Ask, Canned, answer, event, generated, streamed

PROGRESS = {"steps_done": 1, "steps": 2, "rows_done": 0, "rows": 1}


def decoded(*pieces: bytes) -> list[tuple[str, str]]:
    decoder = Decoder()
    return [found for piece in pieces for found in decoder.feed(piece)]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b"data: a\n\n", [("message", "a")]),
        (b"data:a\r\rdata:  b:c \r\n\r\n:\n\n", [("message", "a"), ("message", " b:c ")]),
        (b"event: x\ndata: a\ndata: b\n\n", [("x", "a\nb")]),
        (b"data\ndata\n\n", [("message", "\n")]),
        (b"event: x\n\ndata: a\n\n", [("message", "a")]),
        (b"id: 1\nretry: 5\nnonsense\nother: x\ndata: a\n\n", [("message", "a")]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [("message", "a")]),
        (b"data: \xc3\xa9\xff\n\n", [("message", "é\ufffd")]),
        (b"data: a\n\ndata: never ended\n", [("message", "a")]),
    ],
)
def test_the_framing_of_the_standard(text: bytes, events: list[tuple[str, str]]) -> None:
    assert decoded(text) == decoded(*(text[i : i + 1] for i in range(len(text)))) == events


LINES = st.lists(
    st.sampled_from(
        ["data: a", "data:é", "event: step", ": c", "", "", "data", "id: 1", "data: {}"]
    ),
    max_size=12,
)


@given(LINES, st.sampled_from(["\n", "\r", "\r\n"]), st.lists(st.integers(0, 200), max_size=8))
def test_where_it_is_cut_does_not_matter(lines: list[str], end: str, cuts: list[int]) -> None:
    # A lone CR is known to end a line when the next byte is there.
    text = "".join(line + end for line in lines).encode() + b":"
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    assert decoded(*pieces) == decoded(text) == decoded(text.replace(end.encode(), b"\n"))


def received(ask: Ask, *pieces: bytes | Exception) -> list[Any]:
    response, body = streamed(*pieces)
    try:
        return ask(Canned(response), "stream_generate", record=[1])
    finally:
        assert body.closed


def test_what_is_no_event_is_left_out_and_nothing_follows_the_answer(ask: Ask) -> None:
    done = generated(images=[{**IMAGE, "data": None}])
    text = (
        event("step", **STEP)
        + b": still here\n\n"
        + event("progress", **PROGRESS)
        + event("novelty", x=1)
    )
    found = received(ask, text[:70], text[70:], event("done", **done) + event("step", **STEP))
    assert [type(each) for each in found] == [Step, Progress, Done]
    assert found[-1].answer[0].bytes == found[-1].answer[0].trajectory[0].bytes == b"hello"


DRAINING = {"status": 503, "code": "draining", "detail": "shutting down", "request_id": "abc"}


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        (
            [event("step", **STEP), event("error", **DRAINING), event("done", **generated())],
            Unavailable,
        ),
        ([event("error", status=500)], ServiceFailed),
        ([], UnexpectedAnswer),
        ([event("step", **STEP)], UnexpectedAnswer),
        ([b"event: step\ndata: {\n\n"], UnexpectedAnswer),
    ],
)
def test_streams_that_do_not_end_with_an_answer(
    ask: Ask, pieces: list[bytes], kind: type[Any]
) -> None:
    with pytest.raises(kind) as caught:
        received(ask, *pieces)
    assert caught.value.request_id == "abc"
    with pytest.raises(UnexpectedAnswer, match="text/event-stream"):
        ask(Canned(answer()), "stream_generate")


def test_a_stream_that_is_closed_stops_the_service(service: Service) -> None:
    before = service.metric("ign_cancelled_rows_total")
    options: dict[str, Any] = {"n": 3, "record": [0], "steps": 300_000}
    with Client(service.url) as client, client.stream_generate(**options) as events:
        next(events)

    async def leave() -> None:
        async with (
            AsyncClient(service.url) as client,
            client.stream_generate(**options) as events,
        ):
            await anext(events)

    asyncio.run(leave())
    service.until_metric("ign_cancelled_rows_total", before + 6)
