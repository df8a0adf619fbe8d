"""In-painting masks: white pixels are regenerated, black pixels are kept."""

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

_REGENERATE: Final = 128  # lowest grey level that is regenerated
_KEEP: Final = 0


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A decoded mask of mode L, with the size in the file; transparent pixels are black (kept)."""

    image: Image.Image

    def __repr__(self) -> str:
        return f"<Mask {self.image.width}×{self.image.height}>"


def decode_mask(data: bytes, limits: DecodeLimits, *, field: str) -> Mask:
    """Decode a mask; one mask can serve any number of pictures. Its own EXIF orientation is ignored.

    Raises:
        InvalidContent: not PNG, JPEG or WebP, truncated or damaged (code `undecodable_image`).
        TooLarge: larger than the limits (code `image_too_large`).
    """
    image, _ = decode_as_stored(data, limits, field=field)
    return Mask(composite(image, "L", (_KEEP,)))


def keep_mask(
    mask: Mask, picture: Picture, card: ModelCard, *, resize: Resize = "fit", field: str
) -> NDArray[np.bool_]:
    """Fit a mask to the row of its picture.

    A mask with the stored size of the picture gets the picture's transpose and `resize`, with nearest neighbour; the
    letterbox is kept. A mask with the size of the model is used without changes.

    Args:
        mask: the decoded mask.
        picture: the picture that the mask belongs to.
        card: of the model.
        resize: as for the picture.
        field: name of the field in errors.

    Returns:
        (1, H, W) bool; True for pixels that every step restores, which are those with a grey level below 128.

    Raises:
        InvalidContent: the mask has another size (code `mask_size`).
    """
    target = (card.shape[2], card.shape[1])
    grey = mask.image
    if grey.size == picture.stored_size:
        upright = grey if picture.transpose is None else grey.transpose(picture.transpose)
        geometry = fit_geometry(picture.size, target, resize)
        grey = place_on_canvas(upright, geometry, target, (_KEEP,), Image.Resampling.NEAREST)
    elif grey.size != target:
        sizes = (grey.size, picture.stored_size, target)
        mask_size, picture_size, model_size = (f"{width}×{height}" for width, height in sizes)
        raise InvalidContent.field(
            field,
            f"is {mask_size} pixels, neither as large as the picture ({picture_size}) nor as the model ({model_size})",
            code="mask_size",
        )
    return (np.asarray(grey) < _REGENERATE)[None]
