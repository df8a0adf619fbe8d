"""The stages of an inference request: read the tensors, schedule, write the tensors.

The endpoint in `routes.py` runs them for one request, `service.api.fast_path` for small requests of one turn of the
event loop.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from service.api.http.request_context import LARGE_BODY, ApiRequest, count_rows
from service.api.oip.compression import Coding, accepted_encoding, content_encoding, deflate, inflate
from service.api.oip.tensors import HEADER_LENGTH, Inference, header_length, read_request, write_answer
from service.api.plain_request import Stages
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
        encoding: content coding of the response; None for none.
    """

    api: ApiRequest
    model: ServedModel
    inference: Inference
    encoding: Coding | None = None

    count: int = field(init=False)
    steps: int = field(init=False)

    def __post_init__(self) -> None:
        self.count, self.steps = len(self.inference.rows), self.inference.steps

    @property
    def is_large(self) -> bool:
        """Whether the codec pool is to write the response."""
        rows = self.inference.rows
        return (rows.nbytes if self.inference.binary else rows.size * _JSON_BYTES) > LARGE_BODY

    @property
    def is_small(self) -> bool:
        """Whether the event loop is to write the response."""
        return not self.is_large

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


def read(api: ApiRequest, model: ServedModel, body: bytes, length: int | None, encoding: Coding | None) -> InferWork:
    """Read the tensors of a request.

    Args:
        api: the request.
        model: that the path names.
        body: as it came.
        length: number of bytes of the JSON; None for the whole body.
        encoding: content coding of the body.

    Raises:
        IgnError: the body is no valid request.
    """
    settings = api.services.settings
    content = body if encoding is None else inflate(body, encoding, settings.max_body_bytes)
    inference = read_request(content, length, model.card, max_rows=settings.max_images, max_steps=settings.max_steps)
    accepted = accepted_encoding(", ".join(api.headers.getlist("accept-encoding")))
    return InferWork(api=api, model=model, inference=inference, encoding=accepted)


def write(work: InferWork, result: Result) -> tuple[bytes, int | None]:
    """The body of the response, and the number of its bytes that are JSON; None for all of them."""
    content, length = write_answer(work.inference, work.model.card, result.rows)
    return content if work.encoding is None else deflate(content, work.encoding), length


def response_parts(work: InferWork, content: bytes, length: int | None) -> tuple[dict[str, str], bytes, str]:
    """Headers, body and media type of the response whose body comes from `write`."""
    api, model = work.api, work.model
    model.statistics.tensors(api.seconds["decode"], api.seconds["encode"])
    headers = api.response_headers(model) | {"Vary": "Accept-Encoding"}
    if work.encoding is not None:
        headers["Content-Encoding"] = work.encoding
    if length is None:
        return headers, content, "application/json"
    return headers | {HEADER_LENGTH: str(length)}, content, "application/octet-stream"


def parse(api: ApiRequest, body: bytes, parameters: Mapping[str, str]) -> InferWork | None:
    """The work of a request with this body; None if the request is unusual."""
    length = header_length(api.headers.getlist(HEADER_LENGTH))
    encoding = content_encoding(", ".join(api.headers.getlist("content-encoding")))
    if encoding is not None:
        return None
    start = time.perf_counter()
    work = read(api, api.resolve(model_ref(parameters)), body, length, None)
    api.seconds["decode"] = time.perf_counter() - start
    return work


def decode(works: Sequence[InferWork]) -> list[Inference]:
    """The inputs of small requests, which `parse` has read."""
    works[0].api.services.metrics.codec("decode", sum(work.api.seconds["decode"] for work in works))
    return [work.inference for work in works]


def respond(ended: Sequence[tuple[InferWork, FloatRows, Result]]) -> list[tuple[dict[str, str], bytes, str]]:
    """Headers, body and media type of the responses of small requests."""
    metrics, responses = ended[0][0].api.services.metrics, list[tuple[dict[str, str], bytes, str]]()
    spent = 0.0
    for work, _, result in ended:
        start = time.perf_counter()
        content = write(work, result)
        work.api.seconds["encode"] = time.perf_counter() - start
        spent += work.api.seconds["encode"]
        responses.append(response_parts(work, *content))
    metrics.codec("encode", spent)
    # Last: if one response fails, each of the others is made again.
    count_rows([(work.api, work.model, result) for work, _, result in ended])
    return responses


STAGES: Final = Stages(decode, respond)
