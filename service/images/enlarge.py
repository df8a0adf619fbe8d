"""Enlarge 8-bit pictures by a whole factor."""

from typing import Literal

import numpy as np
from PIL import Image

from service.images.pixels import Pixels, as_pixels

Resample = Literal["nearest", "smooth"]


def enlarge(picture: Pixels, scale: int, resample: Resample) -> Pixels:
    """Enlarge one picture: (H, W[, 3]) → (scale·H, scale·W[, 3]).

    Args:
        picture: uint8.
        scale: ≥ 1; 1 returns the picture itself.
        resample: `nearest` repeats each pixel as a square; `smooth` is Lanczos.
    """
    height, width, *channels = picture.shape
    if scale == 1:
        return picture
    if resample == "smooth":
        size = (width * scale, height * scale)
        return as_pixels(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    squares = np.broadcast_to(picture[:, None, :, None], (height, scale, width, scale, *channels))
    return squares.reshape(height * scale, width * scale, *channels)
