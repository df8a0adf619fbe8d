"""The OpenAPI descriptions of the native endpoints. They read bodies themselves, so FastAPI cannot derive them."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from pydantic import BaseModel

from service.api.native.schemas import ProblemDocument, ProgressEvent, StepEvent
from service.api.negotiation import Media
from service.api.problems import MEDIA_TYPE

Examples = Mapping[str, Mapping[str, Any]]

REFERENCE: Final = "#/components/schemas/{model}"
"""Reference to the schema of a pydantic model; `service.api.info.openapi_document` adds these schemas."""

# A drawn 3 of 28×28 pixels, and a mask whose lower half is white.
_PICTURE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAByUlEQVR42nVTz29MURT+zj3vvPdmBsEIlYhIxyxmQUWHWmhT3Uj8"
    "2HUjwcaSBbHRiFj5B2xEItjwB7QbFhY2I2REK8RKLCgRSiut+37ddy2etvd1OLtzvvvd893vnEuC/4cqp8TkZJ6LKETwOO9hErNK"
    "omjnOMfOeSmCAew6deutftRC4P8tkgAAmVq7NTawvZos8fz1+0pyh+mrh7G2+sPU+avffi7c3YKCuwLq6TtnGgBGX/5anBnkwAF5"
    "w0gdgB9WsPn2p+wGKqugCIPCMBCRdTix+HEvBSIiy0/hUIyxzF5MF6qTr4PcNcEagFILYPzg3L1ehyirD/S19/VXp14Fpqg4xqvJ"
    "4VjiJDr5ppL9w3hWWmP29IFIrWWS2Th8aKi5ydaeHcl7roXJ4e0ePDamjk4XcsUJPwwF2PpeXyxMKPW0xiCo/piRERhXkCIulsBS"
    "9iTb00iVA8ZpFCXKY86Wjp9d2LHN0krPgM49vXy4DwDqN+f010ue7ww7e95Ofn95132x/lrLdia64gw7UKMPOp9ja+e/69krfqF1"
    "mQmkqPXvH2o16p2JrrBByQRFqQGk2XwcVYwF1jhERDBpaW+p/B0U5XY1+wMVHZRnL6iNJQAAAABJRU5ErkJggg=="
)
_MASK: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcAQAAAABaduI5AAAAGElEQVR42mNgoAZg/M/A8JGJgYGBgRICAIc9Agx43SXIAAAAAElFTkSuQmCC"
)

GENERATE: Final[Examples] = {
    "one": {"summary": "One picture of a chosen seed", "value": {"seed": 7}},
    "sheet": {"summary": "Sixteen pictures, with two steps", "value": {"n": 16, "seed": 7, "steps": 2}},
    "large": {"summary": "One picture, 16 times as large", "value": {"seed": 7, "scale": 16, "resample": "smooth"}},
}
PROJECT: Final[Examples] = {
    "one": {"summary": "A drawing made real", "value": {"images": [_PICTURE]}},
    "hidden": {
        "summary": "Its lower half invented anew",
        "value": {"images": [_PICTURE], "mask": _MASK, "steps": 3},
    },
    "half": {
        "summary": "Strength 0.5, with trajectory",
        "value": {"images": [_PICTURE], "strength": 0.5, "record": [0, 1]},
    },
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
        "summary": "One latent minus half of another, without rescaling",
        "value": {"terms": [{"seed": 1}, {"seed": 2, "weight": -0.5}], "normalize": False},
    },
}
SCORE: Final[Examples] = {"one": {"summary": "A drawing", "value": {"images": [_PICTURE]}}}

BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
PROBLEMS: Final = {
    400: "Not JSON, invalid multipart, or an invalid header value.",
    401: "API key missing or unknown.",
    403: "API key without the scope.",
    404: "No such model.",
    406: "The endpoint offers none of the accepted formats.",
    408: "The body did not arrive in time.",
    413: "Body or picture above a limit.",
    415: "Unsupported content type or content encoding.",
    422: "Valid syntax, but an invalid value, picture or mask; `errors` names the fields.",
    429: "Queue full, deadline too short for the queue, or rate limit exceeded; see Retry-After.",
    500: "The model failed on these rows.",
    501: "Not available with several processes.",
    503: "Not ready, draining, or too many requests; see Retry-After.",
    504: "The deadline passed, or is too short.",
}
_NATIVE: Final = (400, 401, 404, 406, 408, 413, 415, 422, 429, 500, 503, 504)


def operation(
    request: type[BaseModel], answer: type[BaseModel], examples: Examples, media_types: Collection[Media]
) -> dict[str, Any]:
    """Keyword arguments of the route decorator for one native endpoint.

    Args:
        request: schema of the JSON body.
        answer: schema of the JSON response.
        examples: valid JSON bodies, by name.
        media_types: of the response.
    """
    content: dict[str, Any] = {
        "application/json": {"schema": schema_of(request), "examples": {k: dict(v) for k, v in examples.items()}}
    }
    parameters: list[dict[str, Any]] = [TIMEOUT]
    if "images" in request.model_fields:
        content |= _uploads(request)
        parameters += _query(request)
    events = {"itemSchema": _event(answer)}
    others = [media for media in media_types if media is not Media.JSON]
    answers = {media.value: events if media is Media.EVENTS else BINARY for media in others}
    return {
        "response_model": None,
        "responses": {
            200: {
                "model": answer,
                "description": "In the format that Accept selects." if answers else "Numbers, no pictures.",
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
    "description": "Timeout in decimal seconds, from the arrival of the headers.",
    "schema": {"type": "string", "pattern": r"^(?=.*[1-9])[0-9]{1,9}(\.[0-9]{1,9})?$"},
}


def problem(text: str) -> dict[str, Any]:
    """The OpenAPI description of a problem response."""
    return {"description": text, "content": {MEDIA_TYPE: {"schema": schema_of(ProblemDocument)}}}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """A reference to the schema of a model that is listed in `service.api.info.openapi_document`."""
    return {"$ref": REFERENCE.format(model=model.__name__)}


def _event(answer: type[BaseModel]) -> dict[str, Any]:
    """The schema of one event of a stream, by the rules of OpenAPI 3.2, which FastAPI also uses in 3.1."""
    payloads: dict[str, type[BaseModel]] = {
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
                        "contentSchema": schema_of(payload),
                    },
                },
                "required": ["event", "data"],
            }
            for name, payload in payloads.items()
        ]
    }


def _uploads(request: type[BaseModel]) -> dict[str, Any]:
    """The request bodies besides JSON: a multipart form, and a raw picture."""
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
    content_type = {"contentType": ", ".join(raw)}
    encoding = {name: content_type for name in ("image", "mask") if name in form["properties"]}
    return {"multipart/form-data": {"schema": form, "encoding": encoding}, **raw}


def _query(request: type[BaseModel]) -> list[dict[str, Any]]:
    """The query parameters for a raw body, without defaults, which clients would send with the other bodies, too."""
    return [
        {
            "name": name,
            "in": "query",
            "description": f"{schema['description']} Only with a picture as the body.",
            "schema": {key: value for key, value in schema.items() if key not in ("default", "description")},
        }
        for name, schema in _text_options(request).items()
    ]


def _text_options(request: type[BaseModel]) -> dict[str, Any]:
    """Schemas of the options in forms and queries, which omit a missing option instead of sending null."""
    fields = request.model_json_schema()["properties"]
    options = {
        name: _without_null(schema) for name, schema in fields.items() if name not in ("images", "mask", "masks")
    }
    if "record" in options:
        options["record"] = {
            "type": "string",
            "description": "Steps whose pictures are returned as `trajectory`, such as `0,1,10`; 0 is the input.",
            "pattern": "^[0-9]+(,[0-9]+)*$",
        }
    return options


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without the alternative null."""
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) != 1:
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**options[0], **rest}
