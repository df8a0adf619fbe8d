"""What comes back: frozen values whose repr can be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

from ign_client._picture import Picture, result_repr

ImageT = TypeVar("ImageT", bound="Image", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ModelRef:
    """Which model answered.

    Args:
        name, version: as in ``name/version``.
        digest: ``sha256:`` and 64 hex digits of the file that ran; of a raw answer, its first twelve alone.
    """

    name: str
    version: str
    digest: str

    @property
    def ref(self) -> str:
        """As ``model=`` takes it."""
        return f"{self.name}/{self.version}"

    def __repr__(self) -> str:
        return f"<{self.ref}@{self.digest.removeprefix('sha256:')[:12]}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where the service's time went, in milliseconds."""

    decode_ms: float
    queue_ms: float
    compute_ms: float
    encode_ms: float


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Step(Picture):
    """One recorded step of one row.

    Args:
        index: the row, as `Image.index`.
        step: applications of f so far; 0 is the input.
        change: mean |x_k − x_{k−1}|; None at step 0.
    """

    index: int
    step: int
    change: float | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Image(Picture):
    """One picture of an answer.

    Args:
        index: i of the seed's stream for `generate`, else the place in the request.
        width, height: pixels.
        steps: applications of f.
        converged: whether ``tolerance`` ended it.
        distance: mean |f(x) − x| of the input.
        drift: mean |f(y) − y| of the output; None unless asked for with ``score``.
        trajectory: the steps asked for with ``record``; empty without.
    """

    index: int
    width: int
    height: int
    steps: int
    converged: bool
    distance: float
    drift: float | None = None
    trajectory: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ProjectedImage(Image):
    """One projected picture.

    Args:
        inverted: whether light and dark were exchanged before f.
    """

    inverted: bool


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Frame(Image):
    """A place on a path (``t``, 0…1) or on a grid (``row``, ``col``)."""

    t: float | None = None
    row: int | None = None
    col: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Images(Sequence[ImageT], Generic[ImageT]):
    """An answer with pictures: a sequence of them, and what holds for all.

    Args:
        images: the pictures.
        model: who answered.
        request_id: quote it when something is odd.
        timing: where the service's time went.
        seed: of `generate`, given or chosen by the service; None elsewhere.
    """

    images: tuple[ImageT, ...]
    model: ModelRef
    request_id: str
    timing: Timing
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, place: int) -> ImageT: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[ImageT, ...]: ...
    def __getitem__(self, place: int | slice) -> ImageT | tuple[ImageT, ...]:
        return self.images[place]

    def __repr__(self) -> str:
        return result_repr(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Raw(Picture):
    """All rows in one file: a picture, a contact sheet, a strip, an animation, or float32 N×C×H×W as ``npy``.

    Args:
        model, request_id, timing, seed: as in `Images`.
        steps, distance: by row.
        drift: by row; empty unless asked for with ``score``.
    """

    model: ModelRef
    request_id: str
    timing: Timing
    seed: int | None
    steps: tuple[int, ...]
    distance: tuple[float, ...]
    drift: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How real one picture looks to the model.

    Args:
        index: place in the request.
        distance: mean |f(x) − x|.
        drift: mean |f(y) − y| of y = f(x).
        percentile: of the distance among real held-out pictures, 0…100; None where the model's card has none.
        in_distribution: whether that is at most 99; None likewise.
    """

    index: int
    distance: float
    drift: float
    percentile: float | None
    in_distribution: bool | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Scores(Sequence[Score]):
    """An answer with scores: a sequence of them, and what holds for all."""

    images: tuple[Score, ...]
    model: ModelRef
    request_id: str
    timing: Timing

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, place: int) -> Score: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Score, ...]: ...
    def __getitem__(self, place: int | slice) -> Score | tuple[Score, ...]:
        return self.images[place]

    def __repr__(self) -> str:
        return result_repr(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a model says of itself, and how it runs there.

    Args:
        name, version, digest: which file.
        shape: (C, H, W) of a row.
        range: lowest and highest value of a row.
        device, provider: what it runs on.
        document: the whole card, as the service sent it.
    """

    name: str
    version: str
    digest: str
    shape: tuple[int, int, int]
    range: tuple[float, float]
    device: str
    provider: str
    document: Mapping[str, Any] = field(repr=False)

    @property
    def ref(self) -> str:
        """As ``model=`` takes it."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for."""

    n: int
    images: int
    steps: int
    frames: int
    body_bytes: int
    pixels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What is served.

    Args:
        models: their cards, without arrays.
        default: ``name/version`` of who answers where none is named.
        limits: of one request.
    """

    models: tuple[Card, ...]
    default: str
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether the service takes requests; true or false as a condition.

    Args:
        ready: whether.
        detail: if not, why.
    """

    ready: bool
    detail: str

    def __bool__(self) -> bool:
        return self.ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a stream is.

    Args:
        steps_done: of the slowest row, out of ``steps``.
        rows_done: out of ``rows``.
    """

    steps_done: int
    steps: int
    rows_done: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Generic[ImageT]):
    """The end of a stream.

    Args:
        answer: what the call without a stream would have returned, put together from the steps.
    """

    answer: Images[ImageT]
