"""Completes the OpenAPI document that FastAPI generates from the routes.

Added here: the schemas of request bodies, which the endpoints parse themselves; the limits of the settings; API keys if
they are configured; and the headers and error responses of the middleware.
"""

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from service.api.access import HEALTH_PATHS, PathSet, open_paths
from service.api.info import introduction
from service.api.native.openapi import PROBLEMS, REFERENCE, problem
from service.api.native.schemas import (
    ArithmeticRequest,
    GenerateRequest,
    InterpolateRequest,
    ProblemDocument,
    ProgressEvent,
    ProjectRequest,
    ScoreRequest,
    StepEvent,
)
from service.api.native.validation import MAX_FRAMES
from service.api.oip.schemas import IndexRequest, InferRequest, LoadRequest, UnloadRequest
from service.observability.logs import REQUEST_ID_PATTERN
from service.settings import Settings

_SCHEMAS: Final = (
    ArithmeticRequest,
    GenerateRequest,
    IndexRequest,
    InferRequest,
    InterpolateRequest,
    LoadRequest,
    ProblemDocument,
    ProgressEvent,
    ProjectRequest,
    ScoreRequest,
    StepEvent,
    UnloadRequest,
)
_KEY: Final = "key"
_EVERYWHERE: Final = {
    "X-Request-ID": {
        "description": "The id of the request, if it sent a valid one; else a new id.",
        "required": True,
        "schema": {"type": "string", "pattern": f"^{REQUEST_ID_PATTERN}$"},
    },
    "traceparent": {
        "description": "The request's position in its trace (W3C Trace Context), if the caller sent one.",
        "required": False,
        "schema": {"type": "string", "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]$"},
    },
}
_RETRY: Final = {
    "Retry-After": {
        "description": "Whole seconds.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    }
}
_CHALLENGE: Final = {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}}
_HEADERS: Final[Mapping[str, Mapping[str, Any]]] = {"401": _CHALLENGE, "429": _RETRY, "503": _RETRY}


def operation_id(route: APIRoute) -> str:
    """Name of the call in generated clients; the second path of an endpoint has the suffix `_version`."""
    of_version = "{version}" in route.path and not route.name.endswith("_version")
    return f"{route.name}_version" if of_version else route.name


def install(app: FastAPI, settings: Settings) -> None:
    """Replace ``app.openapi`` by one that completes the document. Call it after all routes are added."""
    generate = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        document = copy.deepcopy(generate())  # FastAPI puts dicts of the routes into it, which all apps share
        complete(document, settings)
        return document

    app.openapi = openapi  # type: ignore[method-assign] # the documented way to customise it


def complete(document: dict[str, Any], settings: Settings) -> None:
    """Complete a document in place."""
    _, definitions = models_json_schema([(model, "validation") for model in _SCHEMAS], ref_template=REFERENCE)
    components = document["components"]
    schemas: dict[str, Any] = components["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's default 422, which is never sent
        schemas.pop(unused, None)
    schemas |= definitions["$defs"]
    if settings.api_keys_file is not None:
        components["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
    document["info"]["description"] = introduction.INTRODUCTION.strip()
    document["tags"] = [dict(tag) for tag in introduction.TAGS]
    free = PathSet(open_paths(settings.private_endpoints))
    for path, operation in _operations(document):
        _complete(path, operation, guarded=path not in free, keys=settings.api_keys_file is not None)
    limits = _limits(settings)
    for properties in _properties(document):
        for name in properties.keys() & limits.keys():
            _limit(properties[name], *limits[name])
    schemas["GridRequest"]["properties"]["rows"]["maximum"] = MAX_FRAMES // 2
    schemas["GridRequest"]["properties"]["cols"]["maximum"] = MAX_FRAMES // 2


def _complete(path: str, operation: dict[str, Any], *, guarded: bool, keys: bool) -> None:
    introduction.describe(operation)
    responses: dict[str, Any] = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    if guarded and keys:
        operation["security"] = [{_KEY: []}]
    common = (401, 403, 429) if guarded else ()
    for status in (*common, *(() if path in HEALTH_PATHS else (503,)), 500):
        responses.setdefault(str(status), problem(PROBLEMS[status]))
    for status, response in responses.items():
        response["headers"] = {**response.get("headers", {}), **_EVERYWHERE, **_HEADERS.get(status, {})}
    operation["responses"] = dict(sorted(responses.items()))


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for operation in item.values():
            yield path, operation


def _properties(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The properties of all request schemas, parameters and forms, by name."""
    for name, schema in document["components"]["schemas"].items():
        if name.endswith(("Request", "Parameters")):
            yield schema.get("properties", {})
    for _, operation in _operations(document):
        yield {parameter["name"]: parameter["schema"] for parameter in operation.get("parameters", ())}
        for body in operation.get("requestBody", {}).get("content", {}).values():
            yield body["schema"].get("properties", {})


def _limits(settings: Settings) -> dict[str, tuple[str, int]]:
    return {
        "n": ("maximum", settings.max_images),
        "steps": ("maximum", settings.max_steps),
        "image": ("maxItems", settings.max_images),
        "images": ("maxItems", settings.max_images),
        "masks": ("maxItems", settings.max_images),
        "frames": ("maximum", MAX_FRAMES),
    }


def _limit(schema: dict[str, Any], keyword: str, value: int) -> None:
    limited_type = "array" if keyword == "maxItems" else "integer"
    for option in schema.get("anyOf", [schema]):
        if option.get("type") == limited_type:
            option[keyword] = value
