"""docs/http-api.md tells of everything there is."""

import re
from pathlib import Path

from service.api.cors import EXPOSED_HEADERS
from service.api.native.schemas import (
    GenerateRequest,
    GridRequest,
    InterpolateRequest,
    PointRequest,
    ProjectRequest,
)
from service.api.oip.tensors import InferParameters
from service.api.problems import status_of
from service.domain import errors
from service.domain.errors import IgnError
from tests.contract.harness import Service

PAGE = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text(encoding="utf-8")
IN_FIELDS = {
    "no_noise",
    "image_too_large",
    "undecodable_image",
    "invalid_base64",
    "invalid_npy",
    "mask_size",
}


def test_every_path_is_there(service: Service) -> None:
    paths = service.get("/openapi.json").json()["paths"]
    for path in paths:
        assert re.search(rf"[` ]{re.escape(path)}[`\n]", PAGE), path


def test_every_option_is_there() -> None:
    for request in (GenerateRequest, ProjectRequest, InterpolateRequest):
        for name in request.model_fields:
            assert f"- `{name}` (" in PAGE, name
    for name in InferParameters.model_fields:
        assert f"- `{name}` (" in PAGE, name
    for part in (PointRequest, GridRequest):
        for name in part.model_fields:
            assert f'"{name}"' in PAGE, name


def test_every_response_header_is_there() -> None:
    for name in EXPOSED_HEADERS:
        assert f"`{name}`" in PAGE, name


def raised(kind: type[IgnError]) -> set[tuple[int, str]]:
    own = set() if kind.__subclasses__() else {(status_of(kind), kind.code)}
    return own.union(
        *[raised(below) for below in kind.__subclasses__() if below.__module__ == errors.__name__]
    )


def test_every_code_is_there_and_no_other() -> None:
    described = {
        (int(status), code)
        for status, code in re.findall(r"^- ([45]\d\d) `(\w+)`:", PAGE, re.MULTILINE)
    }
    others = {
        (500, IgnError.code),
        (404, "not_found"),
        (405, "method_not_allowed"),
        (413, "image_too_large"),
    }
    others |= {(422, code) for code in IN_FIELDS}
    assert described == (raised(IgnError) | others) - {(500, errors.StartupError.code)}
