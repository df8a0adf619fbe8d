"""The contract for programs: the file is what the service says, and what it says can be done."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.api.application import EXPOSED_HEADERS
from service.api.native.schemas import GridRequest, PointRequest
from service.api.oip.tensors import InferParameters
from service.api.problems import status_of
from service.app import ENDPOINTS
from service.domain import errors
from service.domain.errors import IgnError
from tests.contract.harness import Service, serving, settings
from tests.helpers.onnx_models import write_model
from tests.helpers.openapi import FILE, document

SHAPE = (1, 28, 28)  # of the model that the examples are for
DOCUMENT: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
OPERATIONS: dict[str, dict[str, Any]] = {
    path: operation
    for path, operations in DOCUMENT["paths"].items()
    for operation in operations.values()
    if "requestBody" in operation
}
"""Those with a body, by path: all of them are POST."""
EXAMPLES = [
    pytest.param(path, example["value"], id=f"{path} {name}")
    for path, operation in OPERATIONS.items()
    for name, example in operation["requestBody"]["content"]["application/json"]
    .get("examples", {})
    .items()
]


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service as it ships, with a model of that name; another one is the default, so that it can
    be unloaded.
    """
    models = tmp_path_factory.mktemp("models")
    write_model(models, "mnist", "1", SHAPE)
    write_model(models, "other", "1", SHAPE)
    with serving(settings(models, default_model="other")) as running:
        yield running


def test_the_file_is_what_the_service_says(service: Service) -> None:
    assert document() == DOCUMENT, "make openapi"
    assert service.get("/openapi.json").json() == document()


def test_every_operation_with_a_body_has_examples() -> None:
    for path, operation in OPERATIONS.items():
        examples = operation["requestBody"]["content"]["application/json"].get("examples")
        assert examples, path
        assert all(example["summary"] for example in examples.values()), path
    posts = {path for path, operations in DOCUMENT["paths"].items() if "post" in operations}
    assert posts == set(OPERATIONS)


@pytest.mark.parametrize(("path", "value"), EXAMPLES)
def test_every_example_is_answered_as_documented(mnist: Service, path: str, value: Any) -> None:
    try:
        response = mnist.post(path.format(name="mnist", version="1"), value)
    finally:
        if path.endswith("/unload"):  # for the others
            assert mnist.post("/v2/repository/models/mnist/load").status_code == 200
    assert response.status_code == 200, response.text
    assert "200" in OPERATIONS[path]["responses"]
    assert response.headers["Content-Type"] == "application/json"
    assert "application/json" in OPERATIONS[path]["responses"]["200"]["content"]


# docs/http-api.md tells of everything there is

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
    for request in (*(each.request for each in ENDPOINTS if each.tag == "Images"), InferParameters):
        for name in request.model_fields if request else ():
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
