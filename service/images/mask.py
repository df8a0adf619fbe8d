"""In-painting masks: white = regenerate, black = keep."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.artifact.card import ModelCard
from service.domain.errors import InvalidContent
from service.images.decode import DecodeLimits, Picture, decode_as_stored
from service.images.geometry import Resize, fit_geometry, place_on_canvas
from service.images.prepare import composite

_REGENERATE: Final = 128  # grey level from which a pixel is regenerated
_KEEP: Final = 0


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A decoded mask: mode L, as stored; transparent parts keep."""

    image: Image.Image

    def __repr__(self) -> str:
        return f"<Mask {self.image.width}×{self.image.height}>"


def decode_mask(data: bytes, limits: DecodeLimits, *, field: str) -> Mask:
    """Decode a mask once, for any number of pictures; its own EXIF never turns it.

    Raises:
        InvalidContent: not PNG, JPEG or WebP, truncated or damaged (code `undecodable_image`).
        TooLarge: beyond the limits (code `image_too_large`).
    """
    image, _ = decode_as_stored(data, limits, field=field)
    return Mask(composite(image, "L", (_KEEP,)))


def keep_mask(
    mask: Mask, picture: Picture, card: ModelCard, *, resize: Resize = "fit", field: str
) -> NDArray[np.bool_]:
    """Which pixels of the picture's row are put back after every step: (1, H, W), True = keep, grey below 128.

    A mask of the picture's stored size takes the picture's turn and `resize`, with nearest neighbour, and the letterbox
    keeps; one of the model's size is used as it is.

    Raises:
        InvalidContent: any other size (code `mask_size`).
    """
    target = (card.shape[2], card.shape[1])
    grey = mask.image
    if grey.size == picture.stored_size:
        upright = grey if picture.transpose is None else grey.transpose(picture.transpose)
        geometry = fit_geometry(picture.size, target, resize)
        grey = place_on_canvas(upright, geometry, target, (_KEEP,), Image.Resampling.NEAREST)
    elif grey.size != target:
        own, theirs, models = (f"{width}×{height}" for width, height in (grey.size, picture.stored_size, target))
        raise InvalidContent.field(
            field,
            f"is {own} pixels, neither as large as the picture ({theirs}) nor as the model ({models})",
            code="mask_size",
        )
    return (np.asarray(grey) < _REGENERATE)[None]
