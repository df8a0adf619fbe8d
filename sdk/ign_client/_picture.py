"""A picture of a result: its bytes, and methods to decode and save them."""

import io
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ign_client import _extras, _files
from ign_client._errors import InputError
from ign_client._notebook import figure

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
_Bytes = bytes  # the class below has a field named `bytes`


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Picture:
    """A picture, or an array in format ``npy``, as the service sent it.

    Args:
        bytes: content of the file.
        format: ``png``, ``jpeg``, ``webp``, ``gif``, ``apng`` or ``npy``.
    """

    bytes: _Bytes
    format: str

    def to_pil(self) -> "PIL.Image.Image":
        """Decode the picture; an animation supports `seek`.

        Raises:
            InputError: the format is ``npy``, which holds values in the range of the model.
            ImportError: Pillow is not installed.
        """
        if self.format == "npy":
            raise InputError("format npy holds the model's own numbers: use to_numpy(), or ask for another format")
        image: PIL.Image.Image = _extras.pillow().open(io.BytesIO(self.bytes))
        image.load()
        return image

    def to_numpy(self) -> "NDArray[np.uint8] | NDArray[np.float32]":
        """Decode a picture to uint8 (H, W) or (H, W, C), and ``npy`` to float32 in the range of the model.

        Raises:
            ImportError: numpy is not installed; or for a picture, Pillow.
        """
        numpy = _extras.numpy()
        if self.format == "npy":
            rows: NDArray[np.float32] = numpy.load(io.BytesIO(self.bytes), allow_pickle=False)
            return rows
        pixels: NDArray[np.uint8] = numpy.array(self.to_pil())
        return pixels

    def save(self, path: "str | os.PathLike[str]") -> Path:
        """Write the bytes to a file atomically; an existing file is replaced.

        Returns:
            The path.

        Raises:
            InputError: the suffix of the name belongs to another format.
            OSError: the file cannot be written.
        """
        path = Path(path)
        suffix_format = SUFFIXES.get(path.suffix.lower(), self.format)
        if suffix_format != self.format and (suffix_format, self.format) not in _COMPATIBLE:
            raise InputError(
                f"{path.name}: the name says {suffix_format}, but this is {self.format}; ask the service for it"
            )
        _files.write(path, self.bytes)
        return path

    def __repr__(self) -> str:
        return result_repr(self)

    def _repr_html_(self) -> str:
        """The picture in a notebook, large enough to see its pixels."""
        return figure(self)

    def _repr_png_(self) -> _Bytes | None:
        """The bytes of a PNG, for frontends that show pictures but no HTML; None for other formats."""
        return self.bytes if self.format in ("png", "apng") else None


def result_repr(value: Any) -> str:
    """The repr of a result, without members that are None or empty; bytes and long lists are shown by their size."""
    parts = []
    for field in fields(value):
        member = getattr(value, field.name)
        if isinstance(member, bytes):
            member = _Count(len(member), "bytes")
        elif field.name in _SHOWN_AS_COUNT:
            member = member and _Count(len(member), _SHOWN_AS_COUNT[field.name])
        if member is not None and member != ():
            parts.append(f"{field.name}={member!r}")
    return f"{type(value).__name__}({', '.join(parts)})"


class _Count:
    def __init__(self, count: int, unit: str) -> None:
        self._text = f"<{count} {unit}>"

    def __repr__(self) -> str:
        return self._text
