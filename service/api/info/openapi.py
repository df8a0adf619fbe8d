"""`/openapi.json`, made from the table of endpoints."""

import asyncio
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import to_json
from pydantic_core.core_schema import NullableSchema
from starlette.responses import Response

from service import __version__
from service.api.native.answers import ProblemDocument, ProgressEvent, StepEvent
from service.api.negotiation import PICTURE_TYPES, Json, Media
from service.api.pipeline import Stages
from service.api.request import ApiRequest
from service.api.table import Endpoint
from service.settings import Settings

Schemas = Mapping[Any, Json]
"""The schema of what an endpoint takes or gives; each of ours is a reference."""

_Mode = Literal["validation", "serialization"]
_FOLDER: Final = Path(__file__).parent
_REFERENCE: Final = "#/components/schemas/{model}"
_LIMITS: Final = ("maximum", "maxItems")
# which a form and a query do not hold as text
_FILES: Final = frozenset(("images", "mask", "masks"))
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
BINARY_TENSORS: Final = "application/octet-stream"


def endpoint(endpoints: Sequence[Endpoint], settings: Settings) -> Endpoint:
    """`/openapi.json` of these endpoints; the document is made when it is first asked for."""

    @cache
    def encoded() -> bytes:
        return to_json(document(endpoints, settings))

    async def serve(_: ApiRequest) -> Response:
        # it takes 50 ms to make
        return Response(await asyncio.to_thread(encoded), media_type="application/json")

    return Endpoint("/openapi.json", serve, access="docs")


def document(endpoints: Iterable[Endpoint], settings: Settings) -> Json:
    """The OpenAPI document of the endpoints that have a tag, with the limits of the settings."""
    endpoints = [each for each in endpoints if each.tag]
    kinds: dict[Any, _Mode] = dict.fromkeys(
        (ProblemDocument, ProgressEvent, StepEvent), "validation"
    )
    kinds |= {each.request: "validation" for each in endpoints if each.request}
    kinds |= {each.answer: "serialization" for each in endpoints if each.answer}
    adapters = [(kind, mode, TypeAdapter(kind)) for kind, mode in kinds.items()]
    found, definitions = TypeAdapter.json_schemas(adapters, ref_template=_REFERENCE)
    schemas = {kind: schema for (kind, _), schema in found.items()}
    parts = _read("parts.json")
    base: Json = parts["document"]
    base["info"]["description"] = (_FOLDER / "introduction.md").read_text(encoding="utf-8").strip()
    base["info"]["version"] = __version__
    models = definitions["$defs"]
    base["components"] = {"schemas": models}
    # What these accept is negated twice: generators of clients make numbered classes of `anyOf`.
    for name, accepted in parts["schemas"].items():
        models[name] = dict(sorted({**models[name], **accepted}.items()))
    if settings.keyed:
        base["components"]["securitySchemes"] = parts["security_schemes"]
    for each in endpoints:
        guarded = each.access in ("key", "admin", *settings.private_endpoints)
        base["paths"].setdefault(each.template, {})[each.methods[0].lower()] = {
            **_operation(each, schemas),
            "responses": _responses(each, schemas, guarded=guarded),
            "security": [{"key": []}] if each.access in settings.keyed else None,
        }
    return _limited(base, settings)


def _read(name: str) -> Json:
    """A file with what the table does not say."""
    return json.loads((_FOLDER / name).read_bytes())


def _limited(node: Any, settings: Settings) -> Any:
    """The same document with the values of settings in place of their names, and without nulls."""
    if isinstance(node, list):
        return [_limited(each, settings) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        key: getattr(settings, value)
        if key in _LIMITS and isinstance(value, str)
        else _limited(value, settings)
        for key, value in node.items()
        if value is not None
    }


def _operation(endpoint: Endpoint, schemas: Schemas) -> Json:
    """What an endpoint takes."""
    names = re.findall(r"{(\w+)}", endpoint.template)
    path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    parameters = [*path, *endpoint.parameters]
    operation: Json = {
        "tags": [endpoint.tag],
        "operationId": endpoint.name,
        "summary": endpoint.description.partition("\n")[0].rstrip("."),
        "description": endpoint.description,
        "parameters": parameters,
    }
    if request := endpoint.request:
        examples = _read("examples.json").get(endpoint.name.removesuffix("_version"))
        content: Json = {"application/json": {"schema": schemas[request], "examples": examples}}
        content |= dict.fromkeys(endpoint.bodies, _BINARY)
        if Media.PNG in endpoint.bodies:
            content["multipart/form-data"] = _form(request)
            parameters += _query(request)
        is_required = any(field.is_required() for field in request.model_fields.values())
        operation["requestBody"] = {"content": content, "required": is_required or None}
    if isinstance(endpoint.run, Stages):
        parameters.append(_read("parts.json")["parameters"]["timeout"])
    if BINARY_TENSORS in endpoint.bodies:
        parameters.append(_read("parts.json")["parameters"]["json_length"])
    return operation


def _responses(endpoint: Endpoint, schemas: Schemas, *, guarded: bool) -> Json:
    """What an endpoint gives, by status."""
    is_image = endpoint.tag == "Images"
    runs = isinstance(endpoint.run, Stages)
    groups = {
        "all": True,
        "bodies": runs or endpoint.request is not None,
        "cached": endpoint.is_cached,
        "guarded": guarded,
        "images": is_image,
        "models": is_image or "{name}" in endpoint.path,
        "running": runs,
        "serving": endpoint.name not in ("healthz", "live", "metrics"),
    }
    parts = _read("parts.json")
    answer = {media: _content(endpoint, media, schemas) for media in endpoint.formats}
    contents = {"200": answer or None, "304": None}
    responses: Json = {
        status: {
            "description": told["description"],
            "headers": parts["headers"] | told.get("headers", {}),
            "content": contents.get(status, parts["problem"]),
        }
        for status, told in parts["responses"].items()
        if groups[told["of"]]
    }
    if endpoint.is_cached:
        responses["200"]["headers"] |= parts["cache_headers"]
    return responses


def _content(endpoint: Endpoint, media: str, schemas: Schemas) -> Json:
    """The content of a response of a media type."""
    if media == Media.EVENTS:
        item = _read("parts.json")["events"]
        item["oneOf"][2]["properties"]["data"]["contentSchema"] = schemas[endpoint.answer]
        return {"itemSchema": item}  # by the rules of OpenAPI 3.2
    if media == "text/plain":
        return {"schema": {"type": "string"}}
    if media != Media.JSON:
        return _BINARY
    schema = schemas[endpoint.answer]
    title = f"Response {endpoint.name.replace('_', ' ').title()}"
    return {"schema": schema if "$ref" in schema else schema | {"title": title}}


def _form(request: type[BaseModel]) -> Json:
    files = _read("parts.json")["form"]
    if "mask" not in request.model_fields:
        del files["mask"]
    return {
        "schema": {
            "type": "object",
            "properties": files | _text_options(request),
            "required": ["image"],
            "additionalProperties": False,
        },
        "encoding": {name: {"contentType": ", ".join(PICTURE_TYPES)} for name in files},
    }


def _query(request: type[BaseModel]) -> list[Json]:
    """The query parameters for an image as the body, without defaults, which clients would send
    with other bodies.
    """
    return [
        _parameter(
            name,
            schema
            | {
                "default": None,
                "description": f"{schema['description']} Only with an image as the body.",
            },
        )
        for name, schema in _text_options(request).items()
    ]


def url_parameters(
    request: type[BaseModel], texts: Mapping[str, Any], formats: Mapping[str, Media]
) -> tuple[Json, ...]:
    """The query of a GET with the options of a POST, and own parameters ``texts``; the default
    format is first.
    """
    # Only JSON has a trajectory, points and a grid, and an animation is no sheet.
    without = {
        "seed",
        "record",
        *(("points", "grid", "columns", "gap") if "seeds" in texts else ()),
    }
    schemas = {
        name: schema for name, schema in _text_options(request).items() if name not in without
    }
    schemas |= {
        name: {"type": "string", "minLength": 1, **schema} for name, schema in texts.items()
    }
    schemas["format"] |= {
        "enum": [*formats],
        "default": next(iter(formats)),
        "description": "Of the response.",
    }
    return tuple(
        _parameter(name, schema) | {"required": name == "seeds"} for name, schema in schemas.items()
    )


def _parameter(name: str, schema: Json) -> Json:
    """A query parameter with this schema."""
    rest = {key: value for key, value in schema.items() if key != "description"}
    return {"name": name, "in": "query", "description": schema["description"], "schema": rest}


class _NotNull(GenerateJsonSchema):
    def nullable_schema(self, schema: NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def _text_options(request: type[BaseModel]) -> Json:
    """Schemas of the options in forms and queries, which omit a missing option instead of sending
    null.
    """
    fields = request.model_json_schema(schema_generator=_NotNull)["properties"]
    options: Json = {name: schema for name, schema in fields.items() if name not in _FILES}
    if "record" in options:
        options["record"] = _read("parts.json")["record"]
    return options
