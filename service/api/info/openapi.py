"""Completes the OpenAPI document that FastAPI derives from the routes.

Added here: errors and headers that depend on the path alone, the examples, the limits of the settings, and API keys if
they are configured.
"""

import asyncio
import copy
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from service.api.access import PathSet, open_paths
from service.api.native.openapi import BINARY, HEADERS, HEADERS_OF_ALL, JSON_LENGTH, REFERENCE, TIMEOUT, schema_of
from service.api.native.schemas import ProblemDocument, ProgressEvent, StepEvent
from service.api.native.validation import MAX_FRAMES
from service.api.negotiation import Json
from service.api.oip.tensors import IndexRequest, LoadRequest, UnloadRequest
from service.api.problems import MEDIA_TYPE
from service.settings import Settings

_FOLDER: Final = Path(__file__).parent
_TAGS: Final = {
    "Images": "Make, repair, mix and measure images. All of them share one queue and its batches.",
    "Service": "Which models serve, within which limits, and how the service is.",
    "Open Inference Protocol": "Version 2 of the protocol of KServe and Triton, with Triton's extensions for binary "
    "tensors, statistics and the model repository. Its clients work unchanged; rows are float32 in the model's range.",
}
_IMAGES: Final = r"/(generate|generate/.*|project|score|latent-\w+)$"
_MODELS: Final = rf"{_IMAGES}|.*/infer$"
_BODIES: Final = rf"{_MODELS}|/v2/repository/"
_GUARDED: Final = "guarded"  # in place of a pattern: every path that can need a key
# Status → the paths that have it, and what it means.
_PROBLEMS: Final = {
    400: (_BODIES, "Not JSON, invalid multipart, or an invalid header value."),
    401: (_GUARDED, "API key missing or unknown."),
    403: (_GUARDED, "API key without the scope, or a page of another site."),
    404: (rf"{_IMAGES}|.*{{name}}", "No such model."),
    406: (_IMAGES, "The endpoint offers none of the accepted formats."),
    408: (_BODIES, "The body did not arrive in time."),
    413: (_BODIES, "Body or image above a limit."),
    415: (_BODIES, "Unsupported content type or content encoding."),
    422: (
        _IMAGES,
        "Valid syntax, but an invalid value, image or mask; `errors` names the fields. `no_noise`: the model makes "
        "nothing of noise.",
    ),
    429: (_GUARDED, "Queue full, deadline too short for the queue, or rate limit exceeded; see Retry-After."),
    500: ("", "The model failed on these rows."),
    503: ("/(?!healthz|metrics|v2/health/live)", "Not ready, draining, or too many requests; see Retry-After."),
    504: (_MODELS, "The deadline passed, or is too short."),
}
_READ_BY_HAND: Final[dict[str, type[BaseModel]]] = {"index": IndexRequest, "load": LoadRequest, "unload": UnloadRequest}


def operation_id(route: APIRoute) -> str:
    """Name of the call in generated clients; the second path of an endpoint has the suffix `_version`."""
    return f"{route.name}_version" if "{version}" in route.path else route.name


def install(app: FastAPI, settings: Settings) -> None:
    """Replace ``app.openapi`` by one that completes the document, and serve it. Call it after all routes are added."""
    generate = app.openapi
    app.description = (_FOLDER / "introduction.md").read_text(encoding="utf-8").strip()
    app.openapi_tags = [{"name": name, "description": text} for name, text in _TAGS.items()]

    @cache
    def openapi() -> Json:
        document = copy.deepcopy(generate())  # FastAPI puts dicts of the routes into it, which all apps share
        _complete(document, settings)
        return document

    app.openapi = openapi  # type: ignore[method-assign] # the documented way to customise it

    @cache
    def encoded() -> bytes:
        return bytes(JSONResponse(openapi()).body)

    @app.get("/openapi.json", include_in_schema=False)
    async def document() -> Response:
        return Response(await asyncio.to_thread(encoded), media_type="application/json")  # it takes 150 ms to make

    # FastAPI makes what a route needs when it is first looked at: 20 ms, which the first request would wait for.
    for route in app.routes:
        route.matches({"type": "http", "method": "GET", "path": "/", "root_path": "", "headers": []})


def _complete(document: Json, settings: Settings) -> None:
    components, free = document["components"], PathSet(open_paths(settings.private_endpoints))
    examples: Json = json.loads((_FOLDER / "examples.json").read_text(encoding="utf-8"))
    models: list[type[BaseModel]] = [ProblemDocument, ProgressEvent, StepEvent, *_READ_BY_HAND.values()]
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    components["schemas"] |= definitions["$defs"]
    del components["schemas"]["HTTPValidationError"], components["schemas"]["ValidationError"]  # are never sent
    if settings.api_keys_file is not None:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operation in _operations(document):
        guarded = path not in free
        _complete_request(path, operation, examples)
        _complete_responses(path, operation, guarded=guarded)
        if guarded and settings.api_keys_file is not None:
            operation["security"] = [{"key": []}]
    del document["paths"]["/generate"]["post"]["requestBody"]["required"]  # all of its options have defaults
    _add_limits(document, settings)


def _operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, item in document["paths"].items():
        for operation in item.values():
            yield path, operation


def _complete_request(path: str, operation: Json, examples: Json) -> None:
    name, _, of_version = operation["operationId"].partition("_version")
    summary = operation["description"].partition("\n")[0].rstrip(".")
    operation["summary"] = f"{summary} (of one version)" if of_version else summary
    parameters = operation.setdefault("parameters", [])
    if not any(parameter["in"] == "path" for parameter in parameters):
        parts = re.findall(r"{(\w+)}", path)
        parameters += [{"name": part, "in": "path", "required": True, "schema": {"type": "string"}} for part in parts]
    if name in _READ_BY_HAND:
        operation["requestBody"] = {"content": {"application/json": {"schema": schema_of(_READ_BY_HAND[name])}}}
    if name in examples:
        operation["requestBody"]["content"]["application/json"]["examples"] = examples[name]
    if re.match(_MODELS, path):
        parameters.append(TIMEOUT)
    if name == "infer":
        parameters.append(JSON_LENGTH)
        for part in (operation["requestBody"], operation["responses"]["200"]):
            part["content"]["application/octet-stream"] = BINARY


def _complete_responses(path: str, operation: Json, *, guarded: bool) -> None:
    content = {MEDIA_TYPE: {"schema": schema_of(ProblemDocument)}}
    responses = {code: response for code, response in operation["responses"].items() if code in ("200", "304")}
    for status, (pattern, meaning) in _PROBLEMS.items():
        if guarded if pattern == _GUARDED else re.match(pattern, path):
            responses[str(status)] = {"description": meaning, "content": content}
    for code, response in responses.items():
        response["headers"] = HEADERS_OF_ALL | HEADERS.get(code, {}) | response.get("headers", {})
    operation["responses"] = responses


def _add_limits(document: Json, settings: Settings) -> None:
    images = ("array", "maxItems", settings.max_images)
    limits = dict.fromkeys(("image", "images", "masks"), images) | {
        "n": ("integer", "maximum", settings.max_images),
        "steps": ("integer", "maximum", settings.max_steps),
        "frames": ("integer", "maximum", MAX_FRAMES),
    }
    for properties in _properties(document):
        for name in properties.keys() & limits.keys():
            limited_type, keyword, value = limits[name]
            for option in properties[name].get("anyOf", [properties[name]]):
                if option.get("type") == limited_type:
                    option[keyword] = value
    for side in document["components"]["schemas"]["GridRequest"]["properties"].values():
        side["maximum"] = MAX_FRAMES // 2


def _properties(document: Json) -> Iterator[Json]:
    """The properties of all request schemas, parameters and forms, by name."""
    for name, schema in document["components"]["schemas"].items():
        if name.endswith(("Request", "Parameters")):
            yield schema.get("properties", {})
    for _, operation in _operations(document):
        yield {parameter["name"]: parameter["schema"] for parameter in operation.get("parameters", ())}
        for body in operation.get("requestBody", {}).get("content", {}).values():
            yield body["schema"].get("properties", {})
