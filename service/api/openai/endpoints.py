"""OpenAI's images API for programs that speak it, over the stages of the native endpoints.

    POST /v1/images/generations ─▶ JSON of /generate, the prompt is its seed ┐ the same rows,
    POST /v1/images/edits ───────▶ form of /project, its mask by alpha       ┘ in OpenAI's form

No model here reads words, which `revised_prompt` says in every response. `service.api.problems`
writes the errors.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final, Literal, Self

from pydantic import Field

from service.api.message import check_count, parse_as
from service.api.native.endpoints import check_steps, generate, project
from service.api.native.responses import RowWork, picture, step_members
from service.api.native.schemas import (
    MAX_SCALE,
    GenerateRequest,
    ProjectOptions,
    StrictModel,
)
from service.api.native.uploads import Upload, read_form
from service.api.native.urls import seed_of_field
from service.api.negotiation import Json, Media
from service.api.pipeline import Stages
from service.api.request import ApiRequest
from service.api.stream import event
from service.api.table import Endpoint
from service.artifact.card import Card
from service.domain.errors import InvalidContent
from service.domain.latents import FloatRow
from service.domain.tasks import Result, StepOutput, StreamProgress
from service.models.registry import ServedModel

_SIZE: Final = re.compile("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
# The types of the clients require it.
_NO_TOKENS: Final = {"image_tokens": 0, "text_tokens": 0}
_USAGE: Final = {
    "input_tokens": 0,
    "input_tokens_details": _NO_TOKENS,
    "output_tokens": 0,
    "total_tokens": 0,
}


class ImagesRequest(StrictModel):
    """What both endpoints take. The last seven are accepted without effect."""

    prompt: str
    model: str | None = None
    n: Annotated[int | None, Field(ge=1)] = None
    size: str | None = None
    output_format: Literal["png", "webp", "jpeg"] | None = None
    response_format: Literal["b64_json"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int | None, Field(ge=0, le=3)] = None
    steps: Annotated[int | None, Field(ge=1)] = None  # not of OpenAI's API
    quality: str | None = None
    style: str | None = None
    moderation: str | None = None
    input_fidelity: str | None = None
    output_compression: int | None = None
    user: str | None = None
    safety_identifier: str | None = None

    def native(self, api: ApiRequest, card: Card, recommended: int, images: int) -> Json:
        """The native options for a number of images; it sets the media type of the response."""
        options: Json = {"model": self.model, "steps": self.steps, "scale": _scale(self.size, card)}
        options["format"] = self.output_format or "png"
        api.media = Media.EVENTS if self.stream else Media.JSON
        if self.stream:
            if images > 1:
                raise InvalidContent.field("stream", "a stream has one image")
            steps = check_steps(self.steps, recommended=recommended, settings=api.settings)
            parts = (self.partial_images or 0) + 1
            options["record"] = sorted({steps * i // parts for i in range(1, parts)} - {0})
        return options


def _scale(size: str | None, card: Card) -> int:
    """The largest factor with which an image fits into ``size``."""
    if size in (None, "auto"):
        return 1
    match = _SIZE.fullmatch(size or "")
    (_, height, width) = card.shape
    if match is None:
        raise InvalidContent.field("size", "must be auto or WIDTHxHEIGHT, such as 512x512")
    scale = min(int(match[1]) // width, int(match[2]) // height, MAX_SCALE)
    if not scale:
        raise InvalidContent.field(
            "size", f"must be at least {width}x{height}, the size of {card.ref}"
        )
    return scale


@dataclass(slots=True, kw_only=True, eq=False)
class ImagesWork(RowWork):
    """Work whose response has OpenAI's form: ``kind`` begins the names of its events."""

    kind: str
    note: str  # the `revised_prompt`

    def described(self, row: FloatRow) -> Json:
        """What a response and an event say of an image like this row."""
        options = self.options
        (height, width) = row.shape[-2:]
        size = f"{width * options.scale}x{height * options.scale}"
        return {
            "background": "opaque",
            "output_format": options.format,
            "quality": "auto",
            "size": size,
        }

    async def event(self, item: StepOutput | StreamProgress | Result) -> bytes:
        """The event of a partial image or the complete one."""
        if not isinstance(item, StepOutput):
            return b""
        data = (await step_members(self, item))["data"]
        is_last = item.step == self.params.steps
        name = f"{self.kind}.{'completed' if is_last else 'partial_image'}"
        own = (
            {"usage": _USAGE}
            if is_last
            else {"partial_image_index": self.params.record.index(item.step)}
        )
        members = {"type": name, "b64_json": data, "created_at": int(time.time()), **own}
        return event(name, members | self.described(item.row))

    @classmethod
    def encode(cls, works: Sequence[Self]) -> None:
        """Encode the body."""
        for work in works:
            rows = work.shown().rows
            head = {"created": int(time.time()), "usage": _USAGE, **work.described(rows[0])}
            pieces = list[str]()
            for row in rows:
                work.api.check_not_over()
                data = picture(row, work.model.card, work.options)
                pieces.append(json.dumps({"b64_json": data, "revised_prompt": work.note}))
            before = json.dumps(head | {"data": []}).removesuffix("]}")
            work.content = [f"{before}{', '.join(pieces)}]}}".encode("ascii")]


def _parse_generations(api: ApiRequest, body: bytes) -> RowWork:
    options = parse_as(ImagesRequest, body)
    card = api.resolve(options.model).card
    seed = seed_of_field(options.prompt, "prompt")
    count = options.n or 1
    native = options.native(api, card, card.steps.generate, count) | {"n": count, "seed": seed}
    note = (
        f"The prompt is a text seed, seed {seed} of {card.ref}; the model does not read its words."
    )
    make = partial(ImagesWork, kind="image_generation", note=note)
    return generate(api, GenerateRequest.model_validate(native), make)


def _parse_edits(api: ApiRequest, body: bytes) -> RowWork:
    upload = read_form(api, body, ImagesRequest, "image", "image[]")
    check_count("image", len(upload.images), api.settings.max_images)
    options = upload.options
    check_count("n", options.n or 1, 1)  # each image has one projection
    card = api.resolve(options.model).card
    native = options.native(api, card, card.steps.project, len(upload.images))
    images = Upload(
        options=ProjectOptions.model_validate(native),
        images=upload.images,
        masks=upload.masks,
        masks_by_alpha=True,
        has_pages=False,
    )
    note = f"The image is projected by {card.ref}; the model does not read the prompt."
    return project(api, images, partial(ImagesWork, kind="image_edit", note=note))


def _described(model: ServedModel) -> Json:
    return {"id": model.ref, "object": "model", "created": 0, "owned_by": "ign-service"}


async def models(api: ApiRequest) -> Json:
    """List the models."""
    api.services.require_serving()
    return {
        "object": "list",
        "data": [_described(each) for each in api.services.registry.models.values()],
    }


async def model(api: ApiRequest) -> Json:
    """Describe one model, `name` or `name/version`."""
    return _described(api.named_model())


_POST: Final = ("POST",)
# Without tags: OpenAI's own document describes them.
ENDPOINTS: Final = (
    Endpoint(
        "/v1/images/generations",
        Stages(ApiRequest.reject_query, _parse_generations),
        methods=_POST,
    ),
    Endpoint("/v1/images/edits", Stages(ApiRequest.reject_query, _parse_edits), methods=_POST),
    Endpoint("/v1/models", models),
    Endpoint("/v1/models/{ref:path}", model),
)
