import json
import math
from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.api.problems import describe, problem_body, problem_response
from service.domain.errors import InvalidContent, QueueFull, StartupError


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(ge=1)] = 1
    points: list[dict[str, int]] = []


@pytest.mark.parametrize(
    ("seconds", "header"),
    [
        (0.0, "1"),
        (1.001, "2"),
        (7.5, "8"),
        (math.inf, "3600"),
        (math.nan, "1"),
    ],
)
def test_retry_after_is_whole_seconds(seconds: float, header: str) -> None:
    response = problem_response(QueueFull("later", retry_after=seconds), "r")
    assert response.headers["Retry-After"] == header


def test_startup_errors_keep_their_paths_to_the_log() -> None:
    assert "/srv" not in describe(StartupError("/srv/models: no such folder")).detail


def test_answers_stay_small_and_encodable() -> None:
    names = {f"{'x' * 500}\ud800{i}": 1 for i in range(1000)}
    with pytest.raises(ValidationError) as caught:
        Options.model_validate({"points": [names | {"a": "no"}] * 100})
    body = problem_body(describe(caught.value), "r")
    assert len(body["errors"]) == 32
    assert "errors" not in problem_body(InvalidContent("no picture at all"), "r")
    response = problem_response(InvalidContent.field("\ud800", "unknown field"), "r")
    assert json.loads(bytes(response.body))["errors"][0]["field"] == "\ud800"


def test_unforeseen_errors_say_nothing() -> None:
    response = problem_response(describe(RuntimeError("/etc/secret could not be read")), "r-7")
    body = json.loads(bytes(response.body))
    assert (response.status_code, response.media_type) == (500, "application/problem+json")
    assert (body["code"], body["detail"]) == ("internal", body["error"])
    assert b"secret" not in response.body
