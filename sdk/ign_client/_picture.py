"""A picture as it comes out: its bytes, and the ways to use them."""

import io
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ign_client import _extras, _files
from ign_client._errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

SUFFIXES: Final = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".gif": "gif",
    ".apng": "apng",
    ".npy": "npy",
}
"""File name suffix → format."""

_COMPATIBLE: Final = {("png", "apng"), ("apng", "png")}  # an APNG is a PNG with more frames
_SHOWN_AS_COUNT: Final = {"images": "images", "trajectory": "steps"}
_Bytes = bytes  # a field of this name stands in its way below


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Picture:
    """A picture, or with format ``npy`` an array, as the service sent it.

    Args:
        bytes: the file's content.
        format: ``png``, ``jpeg``, ``webp``, ``gif``, ``apng`` or ``npy``.
    """

    bytes: _Bytes
    format: str

    def to_pil(self) -> "PIL.Image.Image":
        """The picture, decoded; of an animation, ready to be seeked.

        Raises:
            InputError: format ``npy`` holds numbers in the model's range, which are no picture.
            ImportError: Pillow is not installed.
        """
        if self.format == "npy":
            raise InputError("format npy holds the model's own numbers: use to_numpy(), or ask for another format")
        image: PIL.Image.Image = _extras.pillow().open(io.BytesIO(self.bytes))
        image.load()
        return image

    def to_numpy(self) -> "NDArray[np.uint8] | NDArray[np.float32]":
        """uint8 (H, W) or (H, W, C) of a picture; of ``npy``, float32 in the model's range.

        Raises:
            ImportError: numpy, or for pictures Pillow, is not installed.
        """
        numpy = _extras.numpy()
        if self.format == "npy":
            rows: NDArray[np.float32] = numpy.load(io.BytesIO(self.bytes), allow_pickle=False)
            return rows
        pixels: NDArray[np.uint8] = numpy.array(self.to_pil())
        return pixels

    def save(self, path: "str | os.PathLike[str]") -> Path:
        """Write the bytes as they are, in one step, over a file that may be there.

        Returns:
            The path.

        Raises:
            InputError: the name's suffix promises another format.
            OSError: it cannot be written.
        """
        path = Path(path)
        promised = SUFFIXES.get(path.suffix.lower(), self.format)
        if promised != self.format and (promised, self.format) not in _COMPATIBLE:
            raise InputError(
                f"{path.name}: the name says {promised}, but this is {self.format}; ask the service for it"
            )
        _files.write(path, self.bytes)
        return path

    def __repr__(self) -> str:
        return result_repr(self)


def result_repr(value: Any) -> str:
    """The repr of a result: what is None left out, bytes and long lists by their size."""
    parts = []
    for field in fields(value):
        found = getattr(value, field.name)
        if isinstance(found, bytes):
            found = _Count(len(found), "bytes")
        elif field.name in _SHOWN_AS_COUNT:
            found = found and _Count(len(found), _SHOWN_AS_COUNT[field.name])
        if found is not None and found != ():
            parts.append(f"{field.name}={found!r}")
    return f"{type(value).__name__}({', '.join(parts)})"


class _Count:
    def __init__(self, count: int, what: str) -> None:
        self._text = f"<{count} {what}>"

    def __repr__(self) -> str:
        return self._text
