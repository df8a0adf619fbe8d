"""The model card: the description that an exported file contains, and the contract between training
and serving.

`model.onnx` stores the card as JSON under the metadata key `ign.card`. `service.artifact.golden`
describes `golden.npz` beside it.
"""

from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.artifact.files import NAME_PATTERN, VERSION_PATTERN
from service.domain.errors import StartupError, first_error
from service.domain.latents import STREAM
from service.domain.tiles import Size, Tiling

CARD_KEY: Final = "ign.card"
INPUT: Final = "x"
OUTPUT: Final = "y"
QUANTILES: Final = 101

Positive = Annotated[float, Field(gt=0)]
Side = Annotated[int, Field(ge=1, le=4096)]  # pixels


class CardError(StartupError):
    """The metadata of a file has no valid card; the text names the invalid part."""


class _Section(BaseModel):
    """A frozen section. Unknown fields are ignored, so an older service can read a newer card of
    the same schema.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Noise(_Section):
    """Which latents the model was trained on: standard normal ones of a named stream, and their
    mean Euclidean norm.
    """

    kind: Literal["gaussian"]
    stream: str = STREAM
    norm: Positive  # to which arithmetic rescales


class Steps(_Section):
    """How often f should be applied when the caller does not say."""

    generate: Annotated[int, Field(ge=1, le=64)] = 1
    project: Annotated[int, Field(ge=1, le=64)] = 1


class Tiles(_Section):
    """How f, which takes one size, is applied to images of any size: see `service.domain.tiles`."""

    # pixels at an inner edge that are not used: the receptive field
    overlap: Annotated[int, Field(ge=0, le=2048)]
    # where tiles may begin: by how much f reduces images inside
    multiple: Annotated[int, Field(ge=1, le=1024)] = 1
    # Sides of smaller tiles, ascending. Tiles have those sides with which they have the fewest
    # pixels.
    smaller: Annotated[tuple[int, ...], Field(max_length=3)] = ()
    # pixels by which an image is mirrored beyond its edges
    margin: Annotated[int, Field(ge=0, le=2048)] = 0


class Tolerance(_Section):
    """Largest absolute difference from the golden rows that a provider may show, by precision."""

    fp32: Positive = 1e-4
    fp16: Positive = 1e-2


class Data(_Section):
    """What the model learned from: file name, its SHA-256, its licence, number of training
    images.
    """

    name: str
    sha256: str
    licence: str
    pictures: int


class Training(_Section):
    """How it was trained."""

    command: str  # the exact one, data named by file name only
    commit: str | None = None  # of the clean source tree; None if it was not clean
    sources: str  # SHA-256 over the `model_export` sources that decide what training computes
    continued: tuple[
        dict[str, Any], ...
    ] = ()  # where other sources went on: `from_step`, `sources`, `commit`
    steps: int  # of the optimiser, over all stages
    parameters: int  # trainable ones
    config: dict[str, Any]  # the preset as it was run


class Origin(_Section):
    """Which file a network was imported from, and what was folded into its graph, in words."""

    file: str  # name without folders
    sha256: str
    folded: tuple[str, ...] = ()


class Card(_Section):
    """All a service needs to know of one model. In schema 2, what was trained elsewhere, less of it
    is known.
    """

    schema_version: Literal[1, 2] = 1
    name: Annotated[str, Field(pattern=NAME_PATTERN)]  # the folder under the model directory
    version: Annotated[str, Field(pattern=VERSION_PATTERN)]  # decimal number ≥ 1
    description: str = ""  # one or two sentences for people
    title: Annotated[str, Field(max_length=40)] = ""  # a short name for people, such as `Digits`
    # what the page asks people to draw: `Draw a digit, 0–9`
    prompt: Annotated[str, Field(max_length=120)] = ""
    objective: Literal["naign", "ign"] | None = None
    # C, H, W
    shape: tuple[Literal[1, 3], Side, Side]
    # None: images are resized to the shape; else the shape is that of a tile
    tiles: Tiles | None = None
    # of a grey model: f gets the luma of colour images, which keep their colours
    color: Literal["luma"] | None = None
    range: tuple[float, float] = (-1.0, 1.0)  # (lo, hi) of pixel values
    # one value per channel, in the range: letterbox and alpha colour
    background: tuple[float, ...]
    # the first inverts under `invert: auto`
    polarity: Literal["light-on-dark", "dark-on-light", "none"] = "none"
    # f(f(x)) = f(x) in every bit, by construction: one step gives what any number gives
    exact: bool = False
    noise: Noise | None = None  # None: the model makes nothing of noise
    steps: Steps = Steps()
    tolerance: Tolerance = Tolerance()
    # batch sizes that were verified at export, ascending
    buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    opset: int  # ONNX opset of the default domain
    data: Data | None = None
    training: Training | None = None
    # measured figures, name → number or table
    quality: dict[str, Any] = Field(default_factory=dict)
    # 101 quantiles (0…100 %) of mean |f(x) − x| over held-out real images
    distance_quantiles: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    licence: str  # of the weights
    origin: Origin | None = None  # of an imported network

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lo, hi = self.range
        if not lo < hi:
            raise ValueError("range must ascend")
        if len(self.background) != self.shape[0]:
            raise ValueError("background needs one value per channel")
        if not all(lo <= b <= hi for b in self.background):
            raise ValueError("background must lie in the range")
        if (
            list(self.buckets) != sorted(set(self.buckets))
            or not self.buckets
            or self.buckets[0] < 1
        ):
            raise ValueError("buckets must ascend from 1 or more")
        if self.color is not None and self.shape[0] != 1:
            raise ValueError("color is of grey models")
        if self.tiles is not None:
            self._check_tiles(self.tiles)
        quantiles = self.distance_quantiles
        if quantiles is not None and (
            len(quantiles) != QUANTILES or list(quantiles) != sorted(quantiles)
        ):
            raise ValueError(f"distance_quantiles must be {QUANTILES} ascending numbers")
        return self

    def _check_tiles(self, tiles: Tiles) -> None:
        if self.exact:
            raise ValueError("exact is of models without tiles")
        if any(side % tiles.multiple for side in self.shape[1:]):
            raise ValueError(f"the sides of a tile must be multiples of {tiles.multiple}")
        smallest = min(self.shape[1:])
        if tiles.margin >= smallest:
            raise ValueError("the margin of tiles must be less than their sides")
        if tiles.margin % tiles.multiple:
            raise ValueError(f"the margin of tiles must be a multiple of {tiles.multiple}")
        if smallest < 2 * (tiles.overlap + tiles.multiple):
            raise ValueError("a tile must have more than twice the overlap")
        sides = [0, *tiles.smaller, smallest]
        if sides != sorted(set(sides)) or any(side % tiles.multiple for side in tiles.smaller):
            raise ValueError(
                f"smaller tiles must be multiples of {tiles.multiple}, ascending, below the shape"
            )

    @property
    def coloured(self) -> Self:
        """The card of a colour model with the range and the background of this grey one."""
        return self.model_copy(
            update={"shape": (3, *self.shape[1:]), "background": self.background * 3}
        )

    def sized(self, size: Size) -> Self:
        """The card for images of this size, (H, W) in pixels: itself unless they are cut into
        tiles.
        """
        return (
            self
            if self.tiles is None
            else self.model_copy(update={"shape": (self.shape[0], *size)})
        )

    def tiling(self, size: Size) -> Tiling:
        """The tiles of an image of this size, (H, W) in pixels; raises ValueError if the card has
        no `tiles`.
        """
        if self.tiles is None:
            raise ValueError(f"{self.ref} takes images of one size")
        return Tiling(size, self.shape[1:], **self.tiles.model_dump())

    def batch_rows(self, most: int) -> int:
        """Rows of the largest batch: ``most``, but of tiles, which are large, at most those of the
        largest bucket.
        """
        return most if self.tiles is None else min(most, self.buckets[-1])

    @property
    def row_shapes(self) -> list[tuple[int, int, int]]:
        """(C, H, W) of the rows that f takes, ascending; one, unless there are smaller tiles."""
        smaller = self.tiles.smaller if self.tiles else ()
        channels, height, width = self.shape
        return [*product((channels,), (*smaller, height), (*smaller, width))]

    @property
    def ref(self) -> str:
        """`name/version`."""
        return f"{self.name}/{self.version}"

    def percentile(self, distance: float) -> float | None:
        """The percentile of a distance, mean |f(x) − x| of an image, among held-out real images: 0
        to 100.

        Linear between the quantiles, 0 below and 100 above them; None if the card has no quantiles.
        """
        if self.distance_quantiles is None:
            return None
        return float(
            np.interp(distance, self.distance_quantiles, np.linspace(0.0, 100.0, QUANTILES))
        )

    def percentile_distance(self, percentile: float) -> float:
        """The inverse of `percentile`; the card must have quantiles."""
        return float(
            np.interp(percentile, np.linspace(0.0, 100.0, QUANTILES), self.distance_quantiles or ())
        )


class ModelCard(Card):
    """The card of a network that was trained here, schema 1."""

    schema_version: Literal[1] = 1
    objective: Literal["naign", "ign"]
    noise: Noise
    data: Data
    training: Training


def to_metadata(card: Card) -> dict[str, str]:
    """The ONNX metadata entries of a card, without fields that older cards do not have."""
    without = {"color", "origin", "tiles"} if card.schema_version == 1 else set[str]()
    return {CARD_KEY: card.model_dump_json(exclude=without if card.exact else without | {"exact"})}


def from_metadata(metadata: Mapping[str, str]) -> Card:
    """Read the card, schema 1 as a `ModelCard`; raises CardError without a valid card."""
    text = metadata.get(CARD_KEY)
    if text is None:
        raise CardError(
            f"the file has no {CARD_KEY} metadata; `ign export` and `ign import` write it"
        )
    try:
        card = Card.model_validate_json(text)
        if card.schema_version == 1:
            card = ModelCard.model_validate_json(text)
    except ValidationError as exc:
        raise CardError(f"invalid card: {first_error(exc, 'card')}") from exc
    if card.noise is not None and card.noise.stream != STREAM:
        raise CardError(f"unknown noise stream {card.noise.stream!r}")
    return card
