import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.negotiation import MAX_LENGTH, Media, negotiate
from service.domain.errors import MalformedRequest, NotAcceptable

ALL = tuple(Media)


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
