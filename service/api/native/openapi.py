"""What `/openapi.json` says of the native endpoints, which read their bodies themselves."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from pydantic import BaseModel

from service.api.http.negotiation import Media
from service.api.http.problems import MEDIA_TYPE
from service.api.native.schemas import ProblemDocument, ProgressEvent, StepEvent

Examples = Mapping[str, Mapping[str, Any]]

REFERENCE: Final = "#/components/schemas/{model}"
"""Of a pydantic model by its name; `service.api.info.openapi_document` puts them there."""

# A 2×2 grey PNG, so that the examples of the documentation can be sent as they are.
_PICTURE: Final = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4AWNg+M/wnwEABgAB/9ywHykAAAAASUVORK5CYII="

GENERATE: Final[Examples] = {
    "one": {"summary": "One picture of a chosen seed", "value": {"seed": 7}},
    "sheet": {"summary": "Sixteen, refined by a second step", "value": {"n": 16, "seed": 7, "steps": 2}},
}
PROJECT: Final[Examples] = {
    "one": {"summary": "One picture", "value": {"images": [_PICTURE]}},
    "half": {"summary": "Half way, recorded", "value": {"images": [_PICTURE], "strength": 0.5, "record": [0, 1]}},
}
INTERPOLATE: Final[Examples] = {
    "path": {"summary": "Nine frames between two seeds", "value": {"points": [{"seed": 1}, {"seed": 2}]}},
    "grid": {
        "summary": "A grid between four seeds",
        "value": {"points": [{"seed": s} for s in (1, 2, 3, 4)], "grid": {"rows": 5, "cols": 5}},
    },
}

ARITHMETIC: Final[Examples] = {
    "sum": {"summary": "The sum of two latents", "value": {"terms": [{"seed": 1}, {"seed": 2}]}},
    "difference": {
        "summary": "One latent less half of another, as it is",
        "value": {"terms": [{"seed": 1}, {"seed": 2, "weight": -0.5}], "normalize": False},
    },
}
SCORE: Final[Examples] = {"one": {"summary": "One picture", "value": {"images": [_PICTURE]}}}

BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
PROBLEMS: Final = {
    400: "Malformed: not JSON, bad multipart, bad header value.",
    401: "API key missing or wrong.",
    403: "The key does not have the scope.",
    404: "No such model.",
    406: "None of the accepted forms is offered.",
    408: "The body did not arrive in time.",
    413: "Body or picture too large.",
    415: "Content type or encoding.",
    422: "Valid syntax, unusable content; `errors` names the fields.",
    429: "Queue full or deadline in doubt; see Retry-After.",
    500: "The model failed on these rows.",
    501: "Not with several processes.",
    503: "Not ready, draining, or too many requests; see Retry-After.",
    504: "The deadline passed, or cannot be met.",
}
_NATIVE: Final = (400, 401, 404, 406, 408, 413, 415, 422, 429, 500, 503, 504)


def operation(
    request: type[BaseModel], answer: type[BaseModel], examples: Examples, forms: Collection[Media]
) -> dict[str, Any]:
    """Keyword arguments for the route of one native endpoint.

    Args:
        request: schema of the JSON body.
        answer: schema of the JSON answer.
        examples: bodies that work, by name.
        forms: in which it can be answered.
    """
    content: dict[str, Any] = {
        "application/json": {"schema": schema_of(request), "examples": {k: dict(v) for k, v in examples.items()}}
    }
    parameters: list[dict[str, Any]] = [TIMEOUT]
    if "images" in request.model_fields:
        content |= _uploads(request)
        parameters += _query(request)
    events = {"itemSchema": _event(answer)}
    answers = {form.value: events if form is Media.EVENTS else BINARY for form in forms if form is not Media.JSON}
    return {
        "response_model": None,
        "responses": {
            200: {
                "model": answer,
                "description": "In the form that Accept asks for." if answers else "Numbers, no pictures.",
                "content": answers,
            },
            **{status: problem(PROBLEMS[status]) for status in _NATIVE},
        },
        "openapi_extra": {
            "requestBody": {"content": content, "required": "n" not in request.model_fields},
            "parameters": parameters,
        },
    }


TIMEOUT: Final = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Decimal seconds from the arrival of the headers until the answer is useless.",
    "schema": {"type": "string", "pattern": r"^(?=.*[1-9])[0-9]{1,9}(\.[0-9]{1,9})?$"},
}


def problem(text: str) -> dict[str, Any]:
    """A problem answer, described."""
    return {"description": text, "content": {MEDIA_TYPE: {"schema": schema_of(ProblemDocument)}}}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """A reference to the schema of a model that `service.api.info.openapi_document` knows."""
    return {"$ref": REFERENCE.format(model=model.__name__)}


def _event(answer: type[BaseModel]) -> dict[str, Any]:
    """What a stream is made of, in the words of OpenAPI 3.2, which FastAPI uses in 3.1 too."""
    kinds: dict[str, type[BaseModel]] = {
        "step": StepEvent,
        "progress": ProgressEvent,
        "done": answer,
        "error": ProblemDocument,
    }
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {
                    "event": {"type": "string", "const": name},
                    "data": {
                        "type": "string",
                        "contentMediaType": "application/json",
                        "contentSchema": schema_of(kind),
                    },
                },
                "required": ["event", "data"],
            }
            for name, kind in kinds.items()
        ]
    }


def _uploads(request: type[BaseModel]) -> dict[str, Any]:
    """The two other forms of a projection: a form with files, and a raw body."""
    file = {"type": "string", "format": "binary"}
    form: dict[str, Any] = {
        "type": "object",
        "properties": {
            "image": {"type": "array", "items": file, "minItems": 1},
            **({"mask": file} if "mask" in request.model_fields else {}),
            **_text_options(request),
        },
        "required": ["image"],
        "additionalProperties": False,
    }
    raw = dict.fromkeys(("image/png", "image/jpeg", "image/webp"), BINARY)
    kinds = {"contentType": ", ".join(raw)}
    encoding = {name: kinds for name in ("image", "mask") if name in form["properties"]}
    return {"multipart/form-data": {"schema": form, "encoding": encoding}, **raw}


def _query(request: type[BaseModel]) -> list[dict[str, Any]]:
    """The options of a raw body. They have no defaults: programs would send those with the other two forms, too."""
    described = {"in": "query", "description": "Only with a picture as the raw body."}
    return [
        {"name": name, "schema": {key: value for key, value in schema.items() if key != "default"}, **described}
        for name, schema in _text_options(request).items()
    ]


def _text_options(request: type[BaseModel]) -> dict[str, Any]:
    """Schemas of the options as forms and queries carry them, where what is not given is left out."""
    fields = request.model_json_schema()["properties"]
    options = {
        name: _without_null(schema) for name, schema in fields.items() if name not in ("images", "mask", "masks")
    }
    if "record" in options:
        options["record"] = {
            "type": "string",
            "description": "Comma-separated step numbers.",
            "pattern": "^[0-9]+(,[0-9]+)*$",
        }
    return options


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The same without null."""
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) != 1:
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**options[0], **rest}
