"""The stages of a request to `/generate` or `/project`: parse, decode, schedule, respond.

The endpoints in `routes.py` run them for one request, `service.api.fast_path` for all small requests of one turn of the
event loop: then each stage runs for every request before the next one begins.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from service.api.http.negotiation import Media
from service.api.http.request_context import ApiRequest, count_rows, parse_as
from service.api.native.responses import INLINE_VALUES, ResponseSpec, check_format, encode_contents, response_parts
from service.api.native.schemas import GenerateRequest, ProjectOptions, ProjectRequest
from service.api.native.uploads import (
    PICTURE_TYPES,
    UPLOAD_TYPES,
    InputRows,
    Upload,
    is_large,
    parse_upload,
    prepare_upload,
    prepare_uploads,
)
from service.api.native.validation import check_count, step_params
from service.api.plain_request import Stages
from service.domain.blending import blend_result, close_loop
from service.domain.errors import IgnError
from service.domain.latents import FloatRows
from service.domain.tasks import Result, SchedulingParams, StepParams
from service.models.registry import ServedModel

FORMATS: Final = (Media.JSON, Media.PNG, Media.WEBP, Media.JPEG, Media.NPY, Media.EVENTS)
_LARGE_NOISE: Final = 1 << 14  # values; a request with more of them draws its noise in the codec pool
_SEED_BITS: Final = 32

MakeRows = Callable[[], InputRows]


@dataclass(slots=True, kw_only=True, eq=False)
class Work:
    """What a request asks of a model, after its options have been checked.

    Args:
        api: the request.
        spec: of the response.
        params: how f is applied.
        make_rows: makes the input rows.
        large: run ``make_rows`` in the codec pool.
        upload: what ``make_rows`` decodes, if it decodes pictures.
        labels: of the spec, for an upload.
    """

    api: ApiRequest
    spec: ResponseSpec
    params: StepParams
    make_rows: MakeRows
    large: bool
    upload: Upload[ProjectOptions] | None = None
    labels: Sequence[dict[str, Any]] = ()

    model: ServedModel = field(init=False)
    count: int = field(init=False)
    """Number of rows; the repeated picture of a loop is not run again."""
    steps: int = field(init=False)

    def __post_init__(self) -> None:
        self.model, self.steps = self.spec.model, self.params.steps
        self.count = len(self.spec.labels) - self.spec.closed

    @property
    def is_small(self) -> bool:
        """Whether no part of the work needs a thread of the codec pool or a stream."""
        channels, height, width = self.model.card.shape
        small = self.count * channels * height * width <= INLINE_VALUES and not self.params.record
        return small and not self.large and self.spec.media is not Media.EVENTS

    def scheduling(self, inputs: InputRows) -> SchedulingParams:
        """The request as the scheduler sees it."""
        api = self.api
        return SchedulingParams(
            step_params=self.params,
            keep_mask=inputs.keep,
            deadline=api.deadline,
            key=api.caller,
            progress=self.spec.media is Media.EVENTS,
            request_id=api.request_id,
            observer=api.spans,
        )

    def error(self, exc: IgnError) -> IgnError:
        """The error of the response for an error of the scheduler."""
        return exc

    def shown(self, rows: FloatRows, result: Result) -> Result:
        """The result as the caller is shown it."""
        if self.spec.strength != 1.0:
            result = blend_result(rows, result, self.spec.strength)
        return close_loop(result) if self.spec.closed else result


def generate(api: ApiRequest, media: Media, options: GenerateRequest) -> Work:
    """The work of `/generate`.

    Raises:
        InvalidContent, UnknownModel: the options are beyond a limit, or no such model serves.
    """
    settings = api.services.settings
    check_count("n", options.n, settings.max_images)
    model = api.resolve(options.model)
    params = step_params(options, recommended=model.card.steps.generate, rows=options.n, settings=settings)
    seed = secrets.randbits(_SEED_BITS) if options.seed is None else options.seed
    labels = [{"index": options.offset + i} for i in range(options.n)]
    spec = ResponseSpec(model=model, media=media, options=options, labels=labels, members={"seed": seed})
    check_format(api, spec, params.record)
    channels, height, width = model.card.shape
    large = options.n * channels * height * width > _LARGE_NOISE
    return Work(api=api, spec=spec, params=params, make_rows=partial(_noise_rows, model, options, seed), large=large)


def project(api: ApiRequest, media: Media, upload: Upload[ProjectOptions]) -> Work:
    """The work of `/project`; errors as `generate`."""
    options, settings, count = upload.options, api.services.settings, len(upload.images)
    model = api.resolve(options.model)
    params = step_params(options, recommended=model.card.steps.project, rows=count, settings=settings)
    labels: list[dict[str, Any]] = [{"index": i} for i in range(count)]
    spec = ResponseSpec(model=model, media=media, options=options, labels=labels, strength=options.strength)
    check_format(api, spec, params.record)

    def make_rows() -> InputRows:
        inputs = prepare_upload(upload, model, settings, api.check_not_over)
        _label(labels, inputs)
        return inputs

    large = is_large(upload)
    return Work(api=api, spec=spec, params=params, make_rows=make_rows, large=large, upload=upload, labels=labels)


def parse_generate(api: ApiRequest, body: bytes, _: Mapping[str, str]) -> Work | None:
    """The work of a request to `/generate` with this body; None if the request is unusual."""
    media = api.negotiate(FORMATS)
    if api.query or api.headers.get("content-type") != "application/json":
        return None
    options = parse_as(GenerateRequest, body)
    if options.has_layout:
        return None
    return generate(api, media, options)


def parse_project(api: ApiRequest, body: bytes, _: Mapping[str, str]) -> Work | None:
    """The work of a request to `/project` with this body; None if the request is unusual."""
    media = api.negotiate(FORMATS)
    content_type = api.content_type()
    if content_type not in UPLOAD_TYPES or (api.query and content_type not in PICTURE_TYPES):
        return None
    upload = parse_upload(api, ProjectOptions, ProjectRequest, body)
    if upload.options.has_layout:
        return None
    return project(api, media, upload)


def decode(works: Sequence[Work]) -> list[InputRows | IgnError]:
    """The input rows of small requests, or why one has none; uploads to the same model are prepared together."""
    together: dict[ServedModel, list[Upload[ProjectOptions]]] = {}
    for work in works:
        if work.upload is not None:
            together.setdefault(work.model, []).append(work.upload)
    prepared: dict[Upload[ProjectOptions], InputRows | IgnError] = {}
    start = time.perf_counter()
    for model, uploads in together.items():
        prepared |= zip(uploads, prepare_uploads(uploads, model, works[0].api.services.settings), strict=True)
    if prepared:
        _count_codec("decode", [work for work in works if work.upload is not None], time.perf_counter() - start)
    made: list[InputRows | IgnError] = []
    for work in works:
        inputs = work.make_rows() if work.upload is None else prepared[work.upload]
        if isinstance(inputs, InputRows) and work.upload is not None:
            _label(work.labels, inputs)
        made.append(inputs)
    return made


def respond(ended: Sequence[tuple[Work, FloatRows, Result]]) -> list[tuple[dict[str, str], bytes, str]]:
    """Headers, body and media type of the responses of small requests; pictures are encoded together."""
    works, results = [work for work, _, _ in ended], [work.shown(rows, result) for work, rows, result in ended]
    start = time.perf_counter()
    contents = encode_contents([(work.api, work.spec, result) for work, result in zip(works, results, strict=True)])
    _count_codec("encode", works, time.perf_counter() - start)
    # Last: if one response fails, each of the others is made again.
    count_rows([(work.api, work.model, result) for work, result in zip(works, results, strict=True)])
    responses = []
    for work, result, content in zip(works, results, contents, strict=True):
        headers, pieces, media_type = response_parts(work.api, work.spec, result, content)
        responses.append((headers, b"".join(pieces), media_type))
    return responses


STAGES: Final = Stages(decode, respond)


def _count_codec(part: str, works: Sequence[Work], seconds: float) -> None:
    """Count one call for several requests, each of which has its share of the time."""
    works[0].api.services.metrics.codec(part, seconds)
    for work in works:
        work.api.seconds[part] += seconds / len(works)


def _label(labels: Sequence[dict[str, Any]], inputs: InputRows) -> None:
    """Note which pictures are inverted."""
    for label, inverted in zip(labels, inputs.inverted, strict=True):
        label["inverted"] = inverted


def _noise_rows(model: ServedModel, options: GenerateRequest, seed: int) -> InputRows:
    return InputRows(rows=model.noise.rows(seed, options.offset, options.n, options.noise_scale))
