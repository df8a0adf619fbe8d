"""Results: frozen value objects with a readable repr."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, overload

from ign_client._picture import Picture

_SHOWN: Final = 100  # images of a contact sheet in a notebook
ImageT = TypeVar("ImageT", bound="Image", covariant=True)
MemberT = TypeVar("MemberT", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """The model that ran; ``digest`` is ``sha256:`` and the hex digits of its file."""

    name: str
    version: str
    digest: str

    @property
    def ref(self) -> str:
        """``name/version``, for the argument ``model``."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds that the service spent on each part of the request."""

    decode_ms: float
    queue_ms: float
    compute_ms: float
    encode_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Picture):
    """One recorded step of one row; ``index`` is that of its `Image`."""

    index: int
    step: int  # applications of f so far; 0 is the input
    change: float | None  # mean |x_k − x_{k−1}|; None at step 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(Picture):
    """One image of a result, and how f made it."""

    index: int  # in the images of the seed for `generate`; else in the request
    width: int
    height: int
    steps: int  # applications of f
    converged: bool  # whether ``tolerance`` stopped the row
    distance: float  # mean |f(x) − x| of the input
    drift: float | None = None  # mean |f(y) − y| of the output; None without ``score``
    trajectory: tuple[Step, ...] = ()  # the steps of ``record``


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectedImage(Image):
    """One projected image; ``inverted``: whether light and dark were exchanged before f."""

    inverted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame(Image):
    """One image of a path, at ``t`` in 0…1, or of a grid, at ``row`` and ``col``."""

    t: float | None = None
    row: int | None = None
    col: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Members(Sequence[MemberT], Generic[MemberT]):
    images: tuple[MemberT, ...]
    model: ModelRef
    request_id: str
    timing: Timing

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> MemberT: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[MemberT, ...]: ...
    def __getitem__(self, index: int | slice) -> MemberT | tuple[MemberT, ...]:
        return self.images[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images(_Members[ImageT], Generic[ImageT]):
    """A result with images: a sequence of them, with the metadata of the response."""

    seed: int | None = None  # of `generate`, chosen by the caller or the service

    def _repr_html_(self) -> str:
        shown = [image._repr_html_() or "" for image in self.images[:_SHOWN]]
        return f"<div>{''.join(shown)}</div><p>{len(shown)} of {len(self)} images</p>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw(Picture):
    """All rows in one file: an image, a contact sheet, a strip, an animation, or ``npy`` float32
    (N, C, H, W).

    ``steps``, ``distance`` and ``drift`` have a value for each row; without ``score``, ``drift`` is
    empty.
    """

    model: ModelRef
    request_id: str
    seed: int | None
    steps: tuple[int, ...]
    distance: tuple[float, ...]
    drift: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A part of an image, in pixels of the model, and the mean |f(x) − x| in it."""

    x: int
    y: int
    width: int
    height: int
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The score of one image. `percentile` and `in_distribution` are None if the card has no
    held-out distances.
    """

    index: int
    distance: float  # mean |f(x) − x|
    drift: float  # mean |f(y) − y| of y = f(x)
    percentile: float | None  # of the distance among those of held-out real images, 0…100
    in_distribution: bool | None  # whether the percentile is at most 99
    # the square that f changes most; None from a service that does not say it
    worst: Box | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores(_Members[Score]):
    """A result with scores: a sequence of them, with the metadata of the response."""


MEASURES: Final = ("distance", "drift", "percentile", "in_distribution")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card(ModelRef):
    """The card of a model, and how the service runs it."""

    shape: tuple[int, int, int]  # (C, H, W) of a row
    range: tuple[float, float]  # lowest and highest value of a row
    device: str
    provider: str  # onnxruntime execution provider
    document: Mapping[str, Any] = field(repr=False)  # the complete card, as the service sent it


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one request."""

    n: int
    images: int
    steps: int
    frames: int
    body_bytes: int
    pixels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The models in service: iterable.

    ``default`` is the ``name/version`` of the model for requests that name none.
    """

    models: tuple[Card, ...]
    default: str
    limits: Limits

    def __iter__(self) -> Iterator[Card]:
        return iter(self.models)


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether the service accepts requests; ``detail`` is the reason if not. The object itself is
    true or false.
    """

    ready: bool
    detail: str

    def __bool__(self) -> bool:
        return self.ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a streamed request."""

    steps_done: int  # of the slowest row, of ``steps``
    steps: int
    rows_done: int  # finished rows, of ``rows``
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Generic[ImageT]):
    """The last event of a stream, with the result that the method without a stream returns."""

    answer: Images[ImageT]
