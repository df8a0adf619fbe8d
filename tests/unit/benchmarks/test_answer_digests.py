import json

import pytest

from benchmarks.answer_digests import canonical, compare
from benchmarks.harness.request_set import requests

HEADERS = {"Content-Type": "application/json", "X-IGN-Seed": "7", "X-Request-ID": "a", "Server-Timing": "queue;dur=1"}
ANSWER = {"seed": 7, "request_id": "a", "timing": {"queue_ms": 0.1}, "images": [{"data": "AA==", "distance": 0.5}]}
EVENT = b'event: step\ndata: {"index": %d, "step": 1}\n\n'


def digested(headers: dict[str, str] | None = None, changes: dict[str, object] | None = None) -> bytes:
    return canonical(200, HEADERS | (headers or {}), json.dumps(ANSWER | (changes or {})).encode())


def test_requests_have_names_of_their_own_and_stay_the_same() -> None:
    first, second = list(requests()), list(requests())
    assert len({request.name for request in first}) == len(first)
    assert first == second


@pytest.mark.parametrize("changes", [{"request_id": "b"}, {"timing": {"queue_ms": 9.0}}])
def test_ids_and_times_do_not_count(changes: dict[str, object]) -> None:
    assert digested(changes=changes) == digested()


def test_headers_outside_the_contract_do_not_count() -> None:
    assert digested({"X-Request-ID": "b", "Server-Timing": "queue;dur=2"}) == digested()


def test_pixels_numbers_and_contract_headers_count() -> None:
    assert digested(changes={"images": [{"data": "AQ==", "distance": 0.5}]}) != digested()
    assert digested(changes={"images": [{"data": "AA==", "distance": 0.6}]}) != digested()
    assert digested({"X-IGN-Seed": "8"}) != digested()


def test_events_count_in_any_order_without_progress_and_comments() -> None:
    headers = {"Content-Type": "text/event-stream"}
    progress = b'event: progress\ndata: {"steps_done": 1}\n\n: still here\n\n'
    assert canonical(200, headers, EVENT % 1 + progress + EVENT % 0) == canonical(200, headers, EVENT % 0 + EVENT % 1)
    assert canonical(200, headers, EVENT % 0) != canonical(200, headers, EVENT % 1)


def test_a_changed_and_a_missing_answer_are_differences() -> None:
    assert compare({"same": "x", "other": "x", "gone": "x"}, {"same": "x", "other": "y"}) == [
        "other: x -> y",
        "gone: x -> absent",
    ]
