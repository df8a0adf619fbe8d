"""What FastAPI cannot derive of the OpenAPI document: headers, media types of responses, bodies besides JSON."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from pydantic import BaseModel
from starlette.responses import Response

from service.api.native.schemas import ProblemDocument, ProgressEvent, StepEvent
from service.api.negotiation import PICTURE_TYPES, Json, Media
from service.observability.logs import REQUEST_ID_PATTERN

REFERENCE: Final = "#/components/schemas/{model}"
BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
TIMEOUT: Final = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Timeout in decimal seconds, from the arrival of the headers.",
    "schema": {"type": "string", "pattern": r"^(?=.*[1-9])[0-9]{1,9}(\.[0-9]{1,9})?$"},
}
JSON_LENGTH: Final = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Number of bytes of JSON at the start of the body, if binary tensors follow.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,12}$"},
}
_RETRY: Final = {"description": "Whole seconds.", "required": True, "schema": {"type": "integer", "minimum": 1}}
HEADERS: Final[dict[str, Json]] = {
    "401": {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    "429": {"Retry-After": _RETRY},
    "503": {"Retry-After": _RETRY},
}
HEADERS_OF_ALL: Final = {
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
_IMAGES: Final = frozenset(("images", "mask", "masks"))  # files of a form


def operation(answer: type[BaseModel], media_types: Collection[Media], upload: type[BaseModel] | None = None) -> Json:
    """Keyword arguments of the route decorator; ``upload`` is the JSON body if a form or an image can replace it."""
    content = {media.value: BINARY for media in media_types}
    content |= {Media.JSON: {}, Media.EVENTS: {"itemSchema": _event(answer)}}
    images = dict.fromkeys(PICTURE_TYPES, BINARY)
    forms = {} if upload is None else {"multipart/form-data": _form(upload, ", ".join(images)), **images}
    return {
        "response_model": answer,
        "responses": {200: {"content": {media.value: content[media] for media in media_types}}},
        "openapi_extra": {"requestBody": {"content": forms}, "parameters": [] if upload is None else _query(upload)},
    }


def url_operation(request: type[BaseModel], texts: Mapping[str, Any], formats: Mapping[str, Media]) -> Any:
    """Keyword arguments of the decorator of a GET route, with own parameters ``texts``; the default format is first."""
    # Only JSON has a trajectory, points and a grid, and an animation is no sheet.
    without = {"seed", "record", *(("points", "grid", "columns", "gap") if "seeds" in texts else ())}
    schemas = {name: schema for name, schema in _text_options(request).items() if name not in without}
    schemas |= {name: {"type": "string", "minLength": 1, **schema} for name, schema in texts.items()}
    schemas["format"] |= {"enum": [*formats], "default": next(iter(formats)), "description": "Of the response."}
    parameters = [_described(name, schema) | {"required": name == "seeds"} for name, schema in schemas.items()]
    headers = {name: {"schema": {"type": "string"}} for name in ("ETag", "Last-Modified", "Cache-Control")}
    return {
        "response_class": Response,
        "responses": {
            200: {"content": {media.value: BINARY for media in formats.values()}, "headers": headers},
            304: {"description": "The caller has the image, by `If-None-Match` or `If-Modified-Since`."},
        },
        "openapi_extra": {"parameters": parameters},
    }


def _described(name: str, schema: Json) -> Json:
    """A query parameter with this schema."""
    rest = {key: value for key, value in schema.items() if key != "description"}
    return {"name": name, "in": "query", "description": schema["description"], "schema": rest}


def schema_of(model: type[BaseModel]) -> Json:
    """A reference to the schema of a model that a route names, or `service.api.info.openapi`."""
    return {"$ref": REFERENCE.format(model=model.__name__)}


def _event(answer: type[BaseModel]) -> Json:
    """The schema of one event of a stream, by the rules of OpenAPI 3.2, which FastAPI also uses in 3.1."""

    def event(name: str, payload: type[BaseModel]) -> Json:
        data = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema_of(payload)}
        properties = {"event": {"type": "string", "const": name}, "data": data}
        return {"type": "object", "properties": properties, "required": ["event", "data"]}

    events = [event("step", StepEvent), event("progress", ProgressEvent), event("done", answer)]
    return {"oneOf": [*events, event("error", ProblemDocument)]}


def _form(request: type[BaseModel], content_type: str) -> Json:
    file = BINARY["schema"]
    files: Json = {"image": {"type": "array", "items": file, "minItems": 1}}
    if "mask" in request.model_fields:
        files["mask"] = file
    return {
        "schema": {
            "type": "object",
            "properties": files | _text_options(request),
            "required": ["image"],
            "additionalProperties": False,
        },
        "encoding": {name: {"contentType": content_type} for name in files},
    }


def _query(request: type[BaseModel]) -> list[Json]:
    """The query parameters for an image as the body, without defaults, which clients would send with other bodies."""
    options = {name: dict(schema) for name, schema in _text_options(request).items()}
    for schema in options.values():
        schema.pop("default", None)
        schema["description"] += " Only with an image as the body."
    return [_described(name, schema) for name, schema in options.items()]


def _text_options(request: type[BaseModel]) -> Json:
    """Schemas of the options in forms and queries, which omit a missing option instead of sending null."""
    fields = request.model_json_schema()["properties"]
    options = {name: _without_null(schema) for name, schema in fields.items() if name not in _IMAGES}
    if "record" in options:
        options["record"] = {
            "type": "string",
            "description": "Steps whose images are returned as `trajectory`, such as `0,1,10`; 0 is the input.",
            "pattern": "^[0-9]+(,[0-9]+)*$",
        }
    return options


def _without_null(schema: Json) -> Json:
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) != 1:
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**options[0], **rest}
