"""`/score`: how real images look to the model. It is an endpoint in a file of its own, as a new one
should be.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.api.message import compact_json
from service.api.native.answers import Answer
from service.api.native.endpoints import endpoint
from service.api.native.responses import (
    RASTER,
    NativeWork,
    RowWork,
    measures,
    round_metric,
    row_headers,
)
from service.api.native.schemas import Described, ImageOptions, Pictures, UploadOptions
from service.api.native.uploads import Upload, upload_work
from service.api.negotiation import Json, Media
from service.api.request import ApiRequest
from service.artifact.card import Card
from service.artifact.pixels import to_levels
from service.domain.latents import FloatRow
from service.domain.tasks import StepParams
from service.images.encode import contact_sheet, encode

# highest percentile, among the distances of real images, that counts as real
_IN_DISTRIBUTION: Final = 99.0
# white of a heat map, in units of the distance of `_IN_DISTRIBUTION`: few pixels change most
_WHITE: Final = 8


class ScoreRequest(UploadOptions):
    """The JSON body of `/score`."""

    images: Pictures
    """The images: PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF."""


class Box(Described):
    """A part of an image, in pixels of the model."""

    x: int
    """Of the left edge."""
    y: int
    """Of the upper edge."""
    width: int
    height: int
    distance: float
    """Mean |f(x) − x| in it."""


class Score(Described):
    """The score of one image."""

    index: int
    distance: float
    """Mean |f(x) − x|, in the range of the model."""
    drift: float
    """Mean |f(y) − y| of y = f(x)."""
    percentile: Annotated[float | None, Field(ge=0, le=100)]
    """Percentage of held-out real images with a smaller distance; null: unknown."""
    in_distribution: bool | None
    """Whether the percentile is at most 99; null: unknown."""
    worst: Box
    """Of the squares of a quarter of the side, the one that f changes most."""


class ScoreAnswer(Answer):
    """Scores, in the order of the request."""

    images: list[Score]


class ScoreWork(NativeWork):
    """Work whose response says where f changes an image."""

    __slots__ = ()
    encoding_bytes = 12  # a float32 change, and a float64 sum of changes

    @classmethod
    def encode(cls, works: Sequence[Self]) -> None:
        """Encode scores, or heat maps."""
        for work in works:
            work.media_type = work.api.media
            work.content = [work.scores() if work.media_type is Media.JSON else work.heat_map()]
            if work.media_type is not Media.JSON:
                work.result_headers = row_headers(work.result)

    def changes(self) -> Iterator[NDArray[np.float32]]:
        """|f(x) − x| of each image, as the mean (H, W) of its channels."""
        # One at a time: all together would take as much memory as the images.
        return map(_change, self.result.rows, self.inputs.rows)

    def scores(self) -> bytes:
        """The JSON of `images`, each with the box that changes most."""
        result = self.result
        return compact_json(
            [
                {
                    "index": index,
                    "distance": round_metric(result.distance[index]),
                    "drift": measures(result, index)["drift"],
                    "worst": worst_box(change),
                    **in_distribution_fields(self.model.card, float(result.distance[index])),
                }
                for index, change in enumerate(self.changes())
            ]
        )

    def heat_map(self) -> bytes:
        """The image, or sheet, of the changes."""
        card = self.model.card
        lo, hi = card.range
        limit = (
            (hi - lo) / 16
            if card.distance_quantiles is None
            else card.percentile_distance(_IN_DISTRIBUTION)
        )
        heat = [to_levels(change, 0.0, _WHITE * max(limit, 1e-6)) for change in self.changes()]
        if card.shape[0] > 1:
            heat = [np.repeat(each[..., None], card.shape[0], axis=-1) for each in heat]
        sheet = contact_sheet(heat, card) if len(heat) > 1 else heat[0]
        return encode(sheet, RASTER[self.api.media])


def _change(made: FloatRow, given: FloatRow) -> NDArray[np.float32]:
    difference = made - given
    return np.asarray(np.abs(difference, out=difference).mean(axis=0))


def worst_box(change: NDArray[np.float32]) -> Json:
    """The square with the largest mean of ``change`` (H, W); its side is a quarter of the shorter
    one of the image.
    """
    height, width = change.shape
    side = max(1, min(height, width) // 4)
    sums = np.zeros((height + 1, width + 1))
    change.cumsum(axis=0, dtype=np.float64, out=sums[1:, 1:])
    sums.cumsum(axis=1, out=sums)
    worst = -1.0
    place = (0, 0)
    # A line at a time: one image can have 40 megapixels.
    for y in range(height - side + 1):
        columns = sums[y + side] - sums[y]
        windows = columns[side:] - columns[:-side]
        x = int(windows.argmax())
        if windows[x] > worst:
            worst = float(windows[x])
            place = (y, x)
    y, x = place
    return {
        "x": x,
        "y": y,
        "width": side,
        "height": side,
        "distance": round_metric(worst / side**2),
    }


def in_distribution_fields(card: Card, distance: float) -> Json:
    """The percentile of a distance among those of real images, and whether it is at most 99; None
    if unknown.
    """
    percentile = card.percentile(distance)
    if percentile is None:
        return {"percentile": None, "in_distribution": None}
    return {
        "percentile": round_metric(percentile),
        "in_distribution": percentile <= _IN_DISTRIBUTION,
    }


def score(api: ApiRequest, upload: Upload) -> RowWork:
    """Measure how real images look to the model.

    How far f moves each image (`distance`), and how that compares with held-out real images
    (`percentile`, `in_distribution`). A large distance marks outliers, changed data or a wrong
    polarity. No image is returned.
    """
    model = api.resolve(upload.options.model)
    return upload_work(
        ScoreWork, api, model, upload, StepParams(steps=1, score=True), ImageOptions()
    )


ENDPOINTS: Final = (
    endpoint(score, ScoreRequest, ScoreAnswer, (Media.JSON, Media.PNG), UploadOptions),
)
