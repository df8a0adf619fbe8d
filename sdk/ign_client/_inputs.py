"""Convert images, masks and latents of any accepted type to bytes; what cannot be sent is an
`InputError`.
"""

import base64
import io
import operator
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, SupportsIndex, TypeGuard

from ign_client import _extras
from ign_client._errors import InputError
from ign_client._picture import Picture

NPY: Final = b"\x93NUMPY"
_TIFF: Final = (b"II*\0", b"MM\0*")
_LONGEST: Final = 80  # characters of a path in a message


class BinaryFile(Protocol):
    """An open binary file."""

    def read(self) -> bytes: ...


class PilImage(Protocol):
    """A `PIL.Image.Image`."""

    def getbands(self) -> tuple[str, ...]: ...


class Array(Protocol):
    """A `numpy.ndarray`: uint8 (H, W) or (H, W, C) is an image, float32 (C, H, W) a latent."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


PictureLike = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryFile
    | PilImage
    | Array
    | Picture
)
"""A path, the content of a file, an open binary file, a PIL image, a numpy array, or an image from
the service.

The pixels of a PIL image are sent as they are, without its EXIF orientation. The service applies
that of a file.
"""


Pictures = PictureLike | Sequence[PictureLike]


@dataclass(frozen=True, slots=True)
class Seed:
    """Latent number ``index`` of a seed, both 0…2³² − 1; a text of 1 to 200 characters stands for a
    seed, too.
    """

    seed: int | str
    index: int = 0


PointLike = SupportsIndex | Seed | PictureLike
"""A latent: a seed as a number, a `Seed`, an image, or an array in the range of the model, float32
(C, H, W).

Content that begins like a ``.npy`` file is such an array, whatever its source.
"""


@dataclass(frozen=True, slots=True)
class Term:
    """A latent and its weight, −10…10."""

    point: PointLike
    weight: float = 1.0


def pictures(images: Pictures) -> list[bytes]:
    """One or several images as the content of files."""
    if isinstance(images, Sequence) and not isinstance(
        images, str | bytes | bytearray | memoryview
    ):
        if not images:
            raise InputError("images: at least one is required")
        return [picture(image, f"images.{i}") for i, image in enumerate(images)]
    return [picture(images, "images")]


def picture(image: PictureLike, field: str) -> bytes:
    data = content(image, field)
    if data.startswith(NPY):
        raise InputError(
            f"{field}: .npy and float32 hold the model's own numbers, which interpolation and "
            "arithmetic of latents take, one image (C, H, W) each; images are PNG, … or uint8"
        )
    return data


def may_have_pages(data: bytes) -> bool:
    """Whether it is a TIFF, of which every page is an image to the service."""
    return data.startswith(_TIFF)


def mask(image: PictureLike, field: str) -> bytes:
    """One mask as the content of a file; a bool array is accepted, too: True = regenerate."""
    if _is_array(image) and image.dtype == bool:
        return picture(image.astype("uint8") * 255, field)
    return picture(image, field)


def point(value: PointLike, field: str) -> dict[str, Any]:
    """A latent as a member of the JSON body."""
    if isinstance(value, Seed):
        return {"seed": value.seed, "index": value.index}
    if isinstance(value, SupportsIndex) and not isinstance(value, bool) and not _is_array(value):
        return {"seed": operator.index(value)}
    data = content(value, field)  # type: ignore[arg-type]  # it rejects booleans
    return {"latent" if data.startswith(NPY) else "image": base64_text(data)}


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def content(source: PictureLike, field: str) -> bytes:
    """The content of the file, or the content that a file with this image would have; float32
    arrays as ``.npy``.
    """
    if isinstance(source, Picture):
        return source.bytes
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if _is_array(source):
        return _array(source, field)
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(source, pillow.Image):
        return _image(source, field)
    read = (
        Path(source).read_bytes
        if isinstance(source, str | os.PathLike)
        else getattr(source, "read", None)
    )
    if not callable(read):
        raise InputError(
            f"{field}: {type(source).__name__} is neither path, bytes, file, PIL image nor "
            f"numpy array"
        )
    try:
        data: object = read()
    except (OSError, ValueError) as exc:  # such as a closed file
        raise InputError(f"{field}: {_reason(exc, source)}") from exc
    if not isinstance(data, bytes):
        raise InputError(f"{field}: the file is open for text; open it for bytes ('rb')")
    return data


def _reason(exc: OSError | ValueError, source: object) -> str:
    """What is wrong with a file; a text may be no path, but base64 or a seed."""
    if not isinstance(source, str):
        return str(exc)
    reason = getattr(exc, "strerror", None) or exc
    return (
        f"a text is a path, {reason}: {source[:_LONGEST]!r}; "
        "give content as bytes, and a seed as Seed(…)"
    )


def _is_array(source: object) -> TypeGuard[Any]:
    """Whether it is a numpy array. This does not import numpy: a program that has not imported it
    has no arrays.
    """
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(source, numpy.ndarray)


def _array(array: Any, field: str) -> bytes:
    dtype = array.dtype.name
    shape = array.shape
    buffer = io.BytesIO()
    if dtype == "float32" and len(shape) == 3:
        _extras.numpy().save(buffer, array.astype("<f4", order="C", copy=False), allow_pickle=False)
        return buffer.getvalue()
    if dtype != "uint8" or len(shape) < 2 or shape[2:] not in _CHANNELS or 0 in shape:
        expected = "expected uint8 (H, W) or (H, W, 1…4); a latent is float32 (C, H, W)"
        raise InputError(f"{field}: an array of {dtype} {shape}; {expected}")
    grey = array.reshape(shape[:2]) if shape[2:] == (1,) else array
    return _image(_extras.pillow().fromarray(grey), field)


_CHANNELS: Final = ((), (1,), (2,), (3,), (4,))
# of PIL: mode of an image → mode of the PNG
_PNG_MODES: Final = {mode: mode for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")} | {
    **dict.fromkeys(("CMYK", "YCbCr", "HSV", "RGBX"), "RGB"),
    "PA": "RGBA",
    "RGBa": "RGBA",
    "La": "LA",
}


def _image(image: Any, field: str) -> bytes:
    mode = image.mode
    if mode not in _PNG_MODES:
        raise InputError(
            f"{field}: PIL mode {mode} has no fixed scale; convert it to L, RGB or RGBA first"
        )
    buffer = io.BytesIO()
    try:
        image.convert(_PNG_MODES[mode]).save(buffer, "PNG", compress_level=1)
    except (
        OSError,
        ValueError,
    ) as exc:  # Pillow reads files late: closed or damaged; or an image without pixels
        raise InputError(f"{field}: the PIL image cannot be encoded: {exc}") from exc
    return buffer.getvalue()
