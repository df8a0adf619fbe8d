"""The stages of an inference request: read the tensors, schedule, write the tensors.

`service.api.pipeline` runs them.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from service.api.oip.tensors import HEADER_LENGTH, Inference, header_length, read_request, write_answer
from service.api.pipeline import LARGE_BODY, Endpoint, ResponseParts
from service.api.request import ApiRequest, count_codec, count_rows
from service.domain.errors import IgnError, InvalidContent, InvalidInference
from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams, StepParams
from service.models.registry import ServedModel

_JSON_BYTES: Final = 16  # estimated length of one number in JSON
_MAX_TIMEOUT_US: Final = 10**15


@dataclass(slots=True, kw_only=True, eq=False)
class InferWork:
    """An inference request whose tensors have been read.

    Args:
        api: the request.
        model: the model that runs the rows.
        inference: the tensors and parameters.
    """

    api: ApiRequest
    model: ServedModel
    inference: Inference

    is_large: Final = False  # reading the tensors is all there is to decode

    count: int = field(init=False)
    steps: int = field(init=False)

    def __post_init__(self) -> None:
        self.count, self.steps = len(self.inference.rows), self.inference.steps

    @property
    def has_large_response(self) -> bool:
        """Whether the codec pool is to write the response."""
        rows = self.inference.rows
        return (rows.nbytes if self.inference.binary else rows.size * _JSON_BYTES) > LARGE_BODY

    def scheduling(self, inputs: Inference) -> SchedulingParams:
        """The request as the scheduler sees it."""
        api, deadline = self.api, self.api.deadline
        if inputs.timeout_us:  # 0 means no timeout
            deadline = min(deadline, api.arrival + min(inputs.timeout_us, _MAX_TIMEOUT_US) / 1e6)
        return SchedulingParams(
            step_params=StepParams(steps=inputs.steps),
            key=api.caller,
            deadline=deadline,
            request_id=api.request_id,
            observer=api.spans,
        )

    def error(self, exc: IgnError) -> IgnError:
        """The error of the response for an error of the scheduler."""
        return InvalidInference(exc.detail) if isinstance(exc, InvalidContent) else exc


def model_ref(parameters: Mapping[str, str]) -> str:
    """`name` or `name/version` of the parameters of a path."""
    return "/".join(parameters[part] for part in ("name", "version") if part in parameters)


def check(api: ApiRequest) -> None:
    """The Content-Type of a body is ignored, because some clients send none."""
    header_length(api.headers.getlist(HEADER_LENGTH))


def parse(api: ApiRequest, body: bytes, parameters: Mapping[str, str]) -> InferWork:
    """Read the tensors of a request."""
    settings, model = api.services.settings, api.resolve(model_ref(parameters))
    length = header_length(api.headers.getlist(HEADER_LENGTH))
    inference = read_request(body, length, model.card, max_rows=settings.max_images, max_steps=settings.max_steps)
    return InferWork(api=api, model=model, inference=inference)


def decode(works: Sequence[InferWork]) -> list[Inference]:
    """The inputs of requests, which `parse` has read."""
    works[0].api.services.metrics.codec("decode", sum(work.api.seconds["decode"] for work in works))
    return [work.inference for work in works]


Encoded = tuple[Result, bytes, int | None]


def encode(ended: Sequence[tuple[InferWork, FloatRows, Result]]) -> list[Encoded]:
    """For each request its result, the body of its response, and how many bytes of that are JSON; None for all."""
    encoded, start = list[Encoded](), time.perf_counter()
    for work, _, result in ended:
        encoded.append((result, *write_answer(work.inference, work.model.card, result.rows)))
    if not ended[0][0].has_large_response:  # the codec pool counts by itself
        count_codec("encode", [work.api for work, _, _ in ended], time.perf_counter() - start)
    return encoded


def respond(ended: Sequence[tuple[InferWork, Encoded]]) -> list[ResponseParts]:
    """Headers, body and media type of the responses."""
    count_rows([(work.api, work.model, result) for work, (result, _, _) in ended])
    return [_response(work, content, length) for work, (_, content, length) in ended]


def _response(work: InferWork, content: bytes, length: int | None) -> ResponseParts:
    api, model = work.api, work.model
    model.statistics.tensors(api.seconds["decode"], api.seconds["encode"])
    headers = api.response_headers(model)
    del headers["Vary"]
    if length is None:
        return headers, [content], "application/json"
    return headers | {HEADER_LENGTH: str(length)}, [content], "application/octet-stream"


ENDPOINTS: Final = tuple(
    Endpoint(f"/v2/models/{{name}}{version}/infer", check, parse, decode, encode, respond)
    for version in ("", "/versions/{version}")
)
