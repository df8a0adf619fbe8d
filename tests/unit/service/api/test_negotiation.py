import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.negotiation import MAX_LENGTH, Media, negotiate
from service.domain.errors import MalformedRequest, NotAcceptable

ALL = tuple(Media)


@pytest.mark.parametrize(
    "accept",
    [None, "", "  ", ",", " , ,", "*/*", "*", "*/*;q=0.1", "application/*", "text/html, */*"],
)
def test_json_unless_told_otherwise(accept: str | None) -> None:
    assert negotiate(accept, ALL) is Media.JSON


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        # ranges
        ("image/*", Media.PNG),
        ("IMAGE/*", Media.PNG),
        ("text/*", Media.EVENTS),
        # weights
        ("image/png;q=0.2, image/webp;q=0.9, application/json;q=0.5", Media.WEBP),
        ("image/webp;q=0.001, image/jpeg;q=0.002", Media.JPEG),
        ("image/jpeg;q=0.9, image/jpeg;q=0.1, image/webp;q=0.5", Media.JPEG),
        ("image/webp ; Q=1.000 , image/png ; q=0.999", Media.WEBP),
        ("application/x-npy, */*;q=0.1", Media.NPY),
        # ties, in the order of the enumeration
        ("image/webp, image/png", Media.PNG),
        ("text/event-stream, application/x-npy, image/jpeg", Media.JPEG),
        ("text/event-stream, application/x-npy", Media.NPY),
        ("image/apng, image/gif", Media.GIF),
        ("image/png, application/json", Media.JSON),
        ("image/webp, */*", Media.JSON),
        # the most specific range decides
        ("image/png;q=0.1, image/*;q=0.8", Media.WEBP),
        ("image/*;q=0.8, image/png;q=0.1, image/webp;q=0", Media.JPEG),
        ("*/*;q=0.9, application/json;q=0.1", Media.PNG),
        ("application/json;q=0, */*", Media.PNG),
        ("image/*;q=0, */*", Media.JSON),
        ("application/*;q=0, image/*;q=0, */*", Media.EVENTS),
        # what browsers and clients send
        ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", Media.PNG),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8", Media.WEBP),
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", Media.JPEG),
        # parameters are allowed and ignored
        ("application/json; charset=utf-8", Media.JSON),
        ('image/webp;profile="a,b;q=0\\"";q=0.5;ext=1, image/png;q=0.4', Media.WEBP),
        ("image/webp;", Media.WEBP),
        ("image/webp;;q=1", Media.WEBP),
    ],
)
def test_negotiation(accept: str, expected: Media) -> None:
    assert negotiate(accept, ALL) is expected


@pytest.mark.parametrize(
    "part", [" ;", "\t ", ";a=b ", ';a="', '";', ",", "a/b,", "a/b;q=1,", ';"\\', "*", "a"]
)
def test_long_headers_take_linear_time(part: str) -> None:
    header = "image/png" + part * ((MAX_LENGTH - 10) // len(part)) + "\x00"
    start = time.process_time()
    with contextlib.suppress(MalformedRequest, NotAcceptable):
        negotiate(header, ALL)
    assert time.process_time() - start < 10


@given(st.text(alphabet='ai/*;,q=.01 "\\\t', max_size=40))
def test_random_headers_raise_nothing_foreign(accept: str) -> None:
    with contextlib.suppress(MalformedRequest, NotAcceptable):
        assert negotiate(accept, ALL) in ALL
