"""What every answer carries, and whose `Accept` is heeded."""

import json
import re

import pytest

from service.api.native.schemas import (
    ArithmeticRequest,
    GenerateRequest,
    InterpolateRequest,
    ProjectRequest,
    ScoreRequest,
    TermRequest,
)
from tests.contract.data import CALLS, FILE, PICTURE, latents
from tests.contract.harness import Service
from tests.contract.oip import INFER, as_json

REQUESTS = (
    GenerateRequest,
    ProjectRequest,
    InterpolateRequest,
    ArithmeticRequest,
    TermRequest,
    ScoreRequest,
)
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
    assert response.headers["X-IGN-Model"] == f"grey/10@{digest[:12]}"
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
        responses.append(service.client.post(path, files=FILE, data={"model": model}))
        kind = {"Content-Type": "image/png"}
        responses.append(
            service.client.post(path, content=PICTURE, headers=kind, params={"model": model})
        )
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
    answers = [service.post(path, body).json() for path, body in CALLS.items()]
    answers += [
        service.get(path).json()
        for path in ("/readyz", "/v2/models/grey/config", "/v2/models/stats")
    ]
    listed = service.get("/models").json()
    names = re.findall(r'"(\w+)":', json.dumps([*answers, listed["limits"]])) + list(
        listed["models"][0]
    )
    assert len(set(names)) > 40
    for request in REQUESTS:
        names += request.model_fields
    assert [name for name in names if not re.fullmatch("[a-z][a-z0-9_]*", name)] == []
