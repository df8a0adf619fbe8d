"""Negotiation, request ids, and what holds for every answer."""

import json
import re

import pytest

from tests.contract.data import CALLS, FILE, PICTURE, array, frames, latents
from tests.contract.harness import Service, problem, send
from tests.contract.oip import INFER, as_json
from tests.helpers.pictures import opened

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
        (",", "application/json"),
        ("text/html, */*", "application/json"),
        ("image/webp, */*", "application/json"),
        # the most specific range decides
        ("image/*;q=0.8, image/png;q=0.1, image/webp;q=0", "image/jpeg"),
        ("application/json;q=0, */*", "image/png"),
        # of weights of one range, the highest
        ("image/jpeg;q=0.9, image/jpeg;q=0.1, image/webp;q=0.5", "image/jpeg"),
        ("image/avif,image/webp,image/svg+xml,image/*,*/*;q=0.8", "image/png"),
        # parameters are ignored
        ('image/webp;profile="a,b;q=0\\"";q=0.5;ext=1, image/png ; Q=0.4', "image/webp"),
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
        assert frames(response.content)


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
    response = service.post(
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
    png, jpeg = (
        service.post("/generate", {"seed": 1}, accept=f"image/{form}").content
        for form in ("png", "jpeg")
    )
    assert opened(png).info == {}
    assert b"Exif" not in jpeg


# Headers and names

FORMS = [
    (path, form)
    for path in CALLS
    for form in ("application/json", "image/png", "application/x-npy", "image/gif")
    if form == "application/json"
    or (path != "/score" and (form != "image/gif" or path == "/latent-interpolate"))
]
TIMING = ", ".join(
    rf"{part};dur=[0-9]+\.[0-9]+" for part in ("decode", "queue", "compute", "encode")
)


@pytest.mark.parametrize(("path", "form"), FORMS)
def test_every_answer_says_who_gave_it_and_how_long_it_took(
    service: Service, path: str, form: str
) -> None:
    digest = service.get("/models/grey").json()["digest"].removeprefix("sha256:")
    response = service.post(path, CALLS[path], accept=form)
    assert response.headers["Content-Type"] == form
    assert response.headers["X-IGN-Model"] == f"grey/10@sha256:{digest}"
    assert re.fullmatch(TIMING, response.headers["Server-Timing"])
    assert re.fullmatch("[A-Za-z0-9._-]{1,128}", response.headers["X-Request-ID"])
    assert response.headers.get("X-IGN-Seed") == ("7" if path == "/generate" else None)
    rows = response.headers.get("X-IGN-Steps", "").split(",")
    assert len(rows) == (3 if path == "/latent-interpolate" and form != "application/json" else 1)
    assert ("X-IGN-Distance" in response.headers) == (form != "application/json")


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize(
    ("model", "version"),
    [("grey", "10"), ("grey/10", "10"), ("grey/2", "2"), ("colour", "1"), ("colour/1", "1")],
)
def test_every_call_is_answered_by_the_model_it_names(
    service: Service, path: str, model: str, version: str
) -> None:
    name = model.partition("/")[0]
    responses = [service.post(path, CALLS[path] | {"model": model})]
    if "images" in CALLS[path]:
        responses.append(service.post(path, files=FILE, data={"model": model}))
        responses.append(send(service, path, PICTURE, "image/png", params={"model": model}))
    for response in responses:
        found = response.json()["model"]
        assert (found["name"], found["version"]) == (name, version)
        assert response.headers["X-IGN-Model"].startswith(f"{name}/{version}@")


@pytest.mark.parametrize("accept", ["image/png", "text/html", "nonsense", "application/json;q=0"])
@pytest.mark.parametrize(
    "path",
    [
        "/models",
        "/models/grey",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/v2",
        "/v2/models/grey",
    ],
)
def test_only_the_native_posts_negotiate(service: Service, path: str, accept: str) -> None:
    plain = service.get(path)
    asked = service.get(path, headers={"Accept": accept})
    assert (plain.status_code, asked.status_code) == (200, 200)
    assert asked.headers["Content-Type"] == plain.headers["Content-Type"]
    inferred = service.post(INFER, as_json(latents(1)), accept=accept)
    assert (inferred.status_code, inferred.headers["Content-Type"]) == (200, "application/json")


def test_names_are_in_snake_case(service: Service) -> None:
    """Those of the document, by which schemathesis judges the answers."""
    schemas = service.get("/openapi.json").json()["components"]["schemas"].values()
    names = {name for schema in schemas for name in schema.get("properties", ())}
    assert len(names) > 100
    assert [name for name in names if not re.fullmatch("[a-z][a-z0-9_]*", name)] == []
