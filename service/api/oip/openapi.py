"""The OpenAPI descriptions of the Open Inference Protocol. Its endpoints read bodies themselves."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

from service.api.native.openapi import BINARY, PROBLEMS, TIMEOUT, Examples, problem, schema_of
from service.api.oip.schemas import InferAnswer, InferRequest

_EXAMPLE: Final[Mapping[str, Any]] = {
    "summary": "Two steps of a grey 28×28 model",
    "value": {
        "id": "1",
        "parameters": {"steps": 2},
        "inputs": [{"name": "x", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784}],
    },
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem responses of an operation, by status."""
    return {status: problem(PROBLEMS[status]) for status in statuses}


INFER: Final[dict[str, Any]] = {
    "response_model": None,
    "responses": {
        200: {
            "model": InferAnswer,
            "description": "The rows, as JSON or as bytes after the JSON.",
            "content": {"application/octet-stream": BINARY},
        },
        **problems(400, 401, 404, 408, 413, 415, 429, 500, 503, 504),
    },
    "openapi_extra": {
        "requestBody": {
            "content": {
                "application/json": {"schema": schema_of(InferRequest), "examples": {"two": dict(_EXAMPLE)}},
                "application/octet-stream": BINARY,
            },
            "required": True,
        },
        "parameters": [
            TIMEOUT,
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "description": "Number of bytes of JSON at the start of the body, if binary tensors follow.",
                "schema": {"type": "string", "pattern": "^[0-9]{1,12}$"},
            },
        ],
    },
}


def model_routes(suffix: str, described: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The two paths of an operation on a model (highest version, given version), and their route arguments."""
    for path, names in (("/v2/models/{name}", ["name"]), ("/v2/models/{name}/versions/{version}", ["name", "version"])):
        extra = dict(described.get("openapi_extra", {}))
        path_parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
        extra["parameters"] = [*path_parameters, *extra.get("parameters", [])]
        yield path + suffix, {"responses": problems(401, 404, 503), **described, "openapi_extra": extra}


INDEX: Final[Examples] = {
    "all": {"summary": "Every version that serves or is in the model directory", "value": {}},
    "ready": {"summary": "Only versions that serve", "value": {"ready": True}},
}
LOAD: Final[Examples] = {"all": {"summary": "Every version of the model in the directory", "value": {}}}
UNLOAD: Final[Examples] = {
    "all": {"summary": "Every version of the model", "value": {}},
    "triton": {"summary": "As sent by clients of Triton", "value": {"parameters": {"unload_dependents": False}}},
}


def repository(request: type[BaseModel], examples: Examples, *, changes: bool = False) -> dict[str, Any]:
    """Keyword arguments of the route decorator for a repository operation; ``examples``: valid bodies, by name."""
    statuses = (400, 401, 403, 404, 408, 413, 415, 501, 503) if changes else (400, 401, 408, 413, 415, 501, 503)
    return {
        "responses": problems(*statuses),
        "openapi_extra": {
            "requestBody": {
                "content": {
                    "application/json": {
                        "schema": schema_of(request),
                        "examples": {name: dict(example) for name, example in examples.items()},
                    }
                }
            }
        },
    }
