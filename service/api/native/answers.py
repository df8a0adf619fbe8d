"""Pydantic models of the native responses; they appear in `/openapi.json` with their docstrings."""

from service.api.native.schemas import Described, Format


class ModelRef(Described):
    """The model that ran."""

    name: str
    version: str
    digest: str
    """`sha256:` and the SHA-256 of the ONNX file."""


class Timing(Described):
    """Milliseconds spent on each part of the request."""

    decode_ms: float
    queue_ms: float
    compute_ms: float
    encode_ms: float


class TrajectoryStep(Described):
    """A recorded step. Step 0 is the prepared input; its `change` is null."""

    step: int
    data: str | None
    """Base64 image."""
    change: float | None


class Image(Described):
    """One image of a response."""

    index: int
    data: str | None
    """Base64 image; null in the event `done` of a stream."""
    format: Format
    width: int
    height: int
    steps: int
    """Number of steps applied."""
    converged: bool
    """Whether `tolerance` stopped the row."""
    distance: float
    """Mean |f(x) − x| of the input."""
    drift: float | None
    """Mean |f(y) − y| of the output."""
    trajectory: list[TrajectoryStep] | None


class ProjectedImage(Image):
    """One projected image."""

    inverted: bool


class FrameImage(Image):
    """One frame of a path (`t`) or of a grid (`row`, `col`)."""

    t: float | None = None
    row: int | None = None
    col: int | None = None


class Answer(Described):
    """Members of every JSON response."""

    model: ModelRef
    request_id: str
    timing: Timing


class StepEvent(Described):
    """Event of a stream: a recorded step of a row, or its last step."""

    index: int
    step: int
    data: str
    """Base64 image."""
    format: Format
    change: float | None


class ProgressEvent(Described):
    """Event of a stream: the progress of the request."""

    steps_done: int
    """Steps of the slowest row."""
    steps: int
    rows_done: int
    rows: int


class GenerateAnswer(Answer):
    """Generated images."""

    seed: int
    images: list[Image]


class ProjectAnswer(Answer):
    """Projected images, in the order of the request."""

    images: list[ProjectedImage]


class ArithmeticAnswer(Answer):
    """The image of the weighted sum."""

    seed: None
    """Always null; for the same members as `/generate`."""
    images: list[Image]


class InterpolateAnswer(Answer):
    """Frames, in order."""

    images: list[FrameImage]


class FieldError(Described):
    """An invalid field and the reason."""

    field: str
    message: str


class ProblemDocument(Described):
    """Problem document (RFC 9457) with a stable `code`; `error` = `detail` for Open Inference
    Protocol clients.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    error: str
    errors: list[FieldError] | None = None
