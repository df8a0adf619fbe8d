"""Negotiation, request ids, and what holds for every answer."""

import json
import re

import pytest

from tests.contract.data import CALLS, array, frames, pixels
from tests.contract.harness import Service, problem

# which returns no pictures
BODIES = {path: body for path, body in CALLS.items() if path != "/score"}
STREAMED = ("/generate", "/project")
ANIMATED = ("/latent-interpolate",)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("accept", "given"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("Application/JSON; charset=utf-8", "application/json"),
        ("image/*", "image/png"),
        ("image/webp", "image/webp"),
        ("image/jpeg", "image/jpeg"),
        ("application/x-npy", "application/x-npy"),
        ("image/jpeg, image/webp", "image/webp"),  # ties in the contract's order
        ("image/png;q=0.5, image/webp;q=0.9", "image/webp"),
        ("image/*;q=0.8, image/png;q=0", "image/webp"),
    ],
)
def test_accept_decides(service: Service, path: str, accept: str | None, given: str) -> None:
    headers = {} if accept is None else {"Accept": accept}
    if accept is None:
        service.client.headers.pop("Accept", None)
    response = service.post(path, BODIES[path], headers=headers)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == given
    assert "Accept" in response.headers["Vary"]
    if given == "application/json":
        json.loads(response.content)
    elif given == "application/x-npy":
        assert array(response.content).ndim == 4
    else:
        assert frames(response.content)[0].shape[0] == 8


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "image/bmp",
        "application/xml, text/*;q=0",
        "application/json;q=0",
        "*/*;q=0",
        "video/*",
    ],
)
def test_nothing_acceptable_is_406(service: Service, path: str, accept: str) -> None:
    found = problem(service.post(path, BODIES[path], accept=accept), 406, "not_acceptable")
    assert "image/webp" in found.detail


@pytest.mark.parametrize("path", BODIES)
def test_streams_and_animations_only_where_there_are_any(service: Service, path: str) -> None:
    events = service.post(path, BODIES[path], accept="text/event-stream")
    if path in STREAMED:
        assert events.headers["Content-Type"].partition(";")[0] == "text/event-stream"
    else:
        problem(events, 406, "not_acceptable")
    for animation in ("image/gif", "image/apng"):
        response = service.post(path, BODIES[path], accept=animation)
        if path in ANIMATED:
            assert len(frames(response.content)) == 3
        else:
            problem(response, 406, "not_acceptable")


@pytest.mark.parametrize(
    "accept", ["application/json;q=2", "image/png;q=x", "json", "*/json", "a" * 5000]
)
def test_a_bad_accept_is_400(service: Service, accept: str) -> None:
    problem(service.post("/generate", {}, accept=accept), 400, "malformed", "Accept")


def test_several_accept_headers_are_one(service: Service) -> None:
    response = service.client.post(
        "/generate", json={}, headers=[("Accept", "image/png;q=0.1"), ("Accept", "image/webp")]
    )
    assert response.headers["Content-Type"] == "image/webp"


@pytest.mark.parametrize("accept", ["image/png", "image/webp", "image/jpeg", "application/x-npy"])
@pytest.mark.parametrize("path", STREAMED)
def test_raw_answers_have_no_place_for_a_trajectory(
    service: Service, path: str, accept: str
) -> None:
    response = service.post(path, BODIES[path] | {"record": [0]}, accept=accept)
    problem(response, 422, "invalid_value", "record")


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("given", ["a", "A.b-c_9", "x" * 128])
def test_a_valid_request_id_is_echoed(service: Service, path: str, given: str) -> None:
    for body in (CALLS[path], {"unknown": 1}):
        response = service.post(path, body, headers={"X-Request-ID": given})
        assert response.headers["X-Request-ID"] == response.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "ä", "a/b", "<script>"])
def test_any_other_request_id_is_replaced(service: Service, given: str) -> None:
    responses = [
        service.post("/generate", {}, headers={"X-Request-ID": given.encode()}) for _ in range(2)
    ]
    minted = [response.headers["X-Request-ID"] for response in responses]
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in minted)
    assert len(set(minted)) == 2


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/models", "/docs", "/openapi.json", "/nope"]
)
def test_every_answer_has_a_request_id(service: Service, path: str) -> None:
    assert service.get(path, headers={"X-Request-ID": "mine"}).headers["X-Request-ID"] == "mine"


def test_pictures_carry_no_metadata(service: Service) -> None:
    png = service.post("/generate", {"seed": 1}, accept="image/png").content
    kinds = []
    at = 8
    while at < len(png):
        kinds.append(png[at + 4 : at + 8])
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]
    assert b"Exif" not in service.post("/generate", {"seed": 1}, accept="image/jpeg").content
    assert pixels(png).shape == (8, 8)
