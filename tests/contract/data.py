"""Images, arrays and request bodies, as tests send them and read them."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from service.artifact.files import read_npy
from service.domain.latents import FloatRows, NoiseSource
from tests.helpers.onnx_models import npy as npy
from tests.helpers.onnx_models import reference
from tests.helpers.pictures import noise, save

Pixels = NDArray[np.uint8]

GREY = (1, 8, 8)
COLOUR = (3, 8, 8)


def latents(
    seed: int, offset: int = 0, n: int = 1, shape: tuple[int, int, int] = GREY
) -> FloatRows:
    return NoiseSource(shape).rows(seed, offset, n)


def step_params(rows: FloatRows, steps: int, scale: float = 1.0) -> FloatRows:
    """f^steps by the numpy network, (N, C, H, W)."""
    for _ in range(steps):
        rows = reference(rows, scale)
    return rows


def quantised(rows: FloatRows) -> Pixels:
    """(N, H, W) or (N, H, W, 3) of rows in −1…1."""
    levels = np.clip(np.rint((rows.astype(np.float64) + 1) * 255 / 2), 0, 255).astype(np.uint8)
    return levels[:, 0] if rows.shape[1] == 1 else np.moveaxis(levels, 1, -1)


def pixels(data: bytes, mode: str | None = None) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image if mode is None else image.convert(mode))


def frames(data: bytes, mode: str = "L") -> list[Pixels]:
    with Image.open(io.BytesIO(data)) as image:
        return [np.asarray(frame.convert(mode)) for frame in ImageSequence.Iterator(image)]


def array(data: bytes) -> FloatRows:
    # `numpy.load` calls `ast.parse`, which in CPython 3.11 fails if threads call it at once. The
    # service has a lock.
    return read_npy(data).copy()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def unb64(text: str | None) -> bytes:
    assert text is not None
    return base64.b64decode(text, validate=True)


PICTURE = save(noise(8, 8, seed=1))

FILE = {"image": ("x.png", PICTURE, "image/png")}

CALLS: dict[str, dict[str, Any]] = {
    "/generate": {"seed": 7},
    "/project": {"images": [b64(PICTURE)]},
    "/latent-interpolate": {"points": [{"seed": 1}, {"seed": 2}], "frames": 3},
    "/latent-arithmetic": {"terms": [{"seed": 1}, {"seed": 2}]},
    "/score": {"images": [b64(PICTURE)]},
}
"""Every native endpoint with a small valid body, for what holds for all of them."""
