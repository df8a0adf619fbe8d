import asyncio
import json
import logging
import math
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.api.application import Application
from service.api.problems import describe, problem_response, status_of
from service.domain import errors
from service.domain.errors import (
    BodyTooSlow,
    DeadlineUnreachable,
    Draining,
    IgnError,
    InvalidContent,
    NotReady,
    OverloadedError,
    QueueFull,
    StartupError,
    UnauthorizedError,
    UnavailableError,
    UnknownModel,
)
from tests.helpers.application import application

EXPECTED = {
    "IgnError": 500,
    "RequestError": 400,
    "MalformedRequest": 400,
    "InvalidContent": 422,
    "UnauthorizedError": 401,
    "ForbiddenError": 403,
    "UnknownModel": 404,
    "InvalidInference": 400,
    "LoadFailed": 400,
    "UnloadRefused": 400,
    "NotSupported": 501,
    "NotAcceptable": 406,
    "UnsupportedMedia": 415,
    "TooLarge": 413,
    "BodyTooSlow": 408,
    "HeadTooSlow": 408,
    "HeadTooLarge": 431,
    "TemporaryError": 500,
    "OverloadedError": 429,
    "QueueFull": 429,
    "WouldMissDeadline": 429,
    "RateLimited": 429,
    "DeadlineError": 504,
    "DeadlineExceeded": 504,
    "DeadlineUnreachable": 504,
    "UnavailableError": 503,
    "NotReady": 503,
    "Draining": 503,
    "TooManyConnections": 503,
    "TooManyBytes": 503,
    "ModelFailure": 500,
    "StartupError": 500,
}


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(ge=1)] = 1
    points: list[dict[str, int]] = []
    even: int = 0

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value


def build() -> Application:
    app = FastAPI(docs_url=None, redoc_url=None, redirect_slashes=False)

    @app.post("/options")
    async def options(options: Options) -> dict[str, int]:
        return {"steps": options.steps}

    @app.get("/items/{number}")
    async def items(number: int, limit: int = 1, x_timeout: Annotated[float, Header()] = 1.0) -> None:
        raise UnknownModel(f"there is no model {number}")

    @app.get("/validate")
    async def validate() -> None:
        Options.model_validate({"points": [{"a": 1}, {"a": "x"}]})

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "short and stout", headers={"X-Spout": "left"})

    @app.get("/crash")
    async def crash() -> None:
        raise RuntimeError("/etc/secret could not be read")

    return application(app)


def call(method: str, path: str, **kwargs: Any) -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(build(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, **kwargs)

    return asyncio.run(main())


def check(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"] == "about:blank"
    assert body["title"]
    assert body["detail"] == body["error"] != ""
    assert "request_id" in body
    return body


def test_every_error_of_the_tree_has_its_status() -> None:
    tree = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, IgnError)}
    assert {name: status_of(kind) for name, kind in tree.items()} == EXPECTED


def test_body_has_exactly_the_members_of_the_contract() -> None:
    assert describe(UnknownModel("there is no model x")).body("r-1") == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "there is no model x",
        "code": "unknown_model",
        "request_id": "r-1",
        "error": "there is no model x",
    }


def test_invalid_content_names_its_fields() -> None:
    body = describe(InvalidContent.field("images.0", "not a picture", code="bad_picture")).body("r")
    assert body["status"] == 422
    assert body["title"] == "Unprocessable Content"
    assert body["code"] == "bad_picture"
    assert body["errors"] == [{"field": "images.0", "message": "not a picture"}]
    assert "errors" not in describe(InvalidContent("no picture at all")).body("r")


@pytest.mark.parametrize(
    ("seconds", "header"),
    [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.001, "2"), (7.5, "8"), (math.inf, "3600"), (math.nan, "1")],
)
@pytest.mark.parametrize("kind", [QueueFull, NotReady])
def test_retry_after_is_whole_seconds(
    kind: type[OverloadedError | UnavailableError], seconds: float, header: str
) -> None:
    assert describe(kind("later", retry_after=seconds)).headers["Retry-After"] == header


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (UnauthorizedError("no key"), {"WWW-Authenticate": "Bearer"}),
        (DeadlineUnreachable("too short"), {"X-Should-Retry": "false"}),
        (BodyTooSlow("slow"), {"Connection": "close"}),
        (Draining("bye"), {"Retry-After": "1", "Connection": "close"}),
        (UnknownModel("no"), {}),
    ],
)
def test_headers_that_belong_to_an_error(error: IgnError, headers: dict[str, str]) -> None:
    assert describe(error).headers == headers


def test_startup_errors_keep_their_paths_to_the_log() -> None:
    assert "/srv" not in json.dumps(describe(StartupError("/srv/models: no such folder")).body("r"))


def test_unmatched_path() -> None:
    check(call("GET", "/nowhere"), 404, "not_found")


def test_wrong_method_keeps_allow() -> None:
    response = call("PUT", "/options", json={})
    check(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_framework_exception_keeps_text_and_headers() -> None:
    response = call("GET", "/teapot")
    assert check(response, 418, "i'm_a_teapot")["detail"] == "short and stout"
    assert response.headers["x-spout"] == "left"


@pytest.mark.parametrize("status", [401, 413])
def test_framework_exceptions_look_like_ours(status: int) -> None:
    mine = {401: errors.UnauthorizedError, 413: errors.TooLarge}[status]
    found = describe(HTTPException(status))
    assert found.code == mine.code
    assert found.detail
    assert found.headers == describe(mine("x")).headers


def test_domain_error_raised_by_an_endpoint() -> None:
    assert check(call("GET", "/items/7"), 404, "unknown_model")["detail"] == "there is no model 7"


@pytest.mark.parametrize(
    ("content", "field", "message"),
    [
        ({"steps": 0}, "steps", "Input should be greater than or equal to 1"),
        ({"stepz": 1}, "stepz", "unknown field"),
        ({"even": 3}, "even", "must be even"),
        ({"points": [{"a": 1}, {"b": "x"}]}, "points.1.b", "unable to parse string as an integer"),
        ([], "body", "valid dictionary or object"),
    ],
)
def test_validation_names_dotted_fields(content: Any, field: str, message: str) -> None:
    body = check(call("POST", "/options", json=content), 422, "invalid_value")
    assert [error["field"] for error in body["errors"]] == [field]
    assert message in body["errors"][0]["message"]
    assert body["detail"].startswith(f"{field}: ")


def test_validation_outside_the_framework() -> None:
    body = check(call("GET", "/validate"), 422, "invalid_value")
    assert body["errors"][0]["field"] == "points.1.a"


def test_validation_of_path_and_query() -> None:
    body = check(call("GET", "/items/x?limit=y"), 422, "invalid_value")
    assert [error["field"] for error in body["errors"]] == ["number", "limit"]
    assert body["detail"].endswith("(and 1 more)")


def test_bad_header_value_is_malformed() -> None:
    body = check(call("GET", "/items/1", headers={"X-Timeout": "soon"}), 400, "malformed")
    assert body["detail"].startswith("x-timeout: ")


def test_json_syntax_is_malformed() -> None:
    response = call("POST", "/options", content=b'{"steps": ', headers={"Content-Type": "application/json"})
    assert "JSON" in check(response, 400, "malformed")["detail"]


def test_answers_stay_small_and_encodable() -> None:
    names = {f"{'x' * 500}\ud800{i}": 1 for i in range(1000)}
    with pytest.raises(ValidationError) as caught:
        Options.model_validate({"points": [names | {"a": "no"}] * 100})
    body = describe(caught.value).body("r")
    assert len(body["errors"]) == 32
    response = problem_response(describe(InvalidContent.field("\ud800", "unknown field")), "r")
    assert json.loads(bytes(response.body))["errors"][0]["field"] == "\ud800"


def test_unforeseen_errors_say_nothing_but_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "service.api.problems"):
        response = call("GET", "/crash")
    check(response, 500, "internal")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "/etc/secret" in caplog.text
