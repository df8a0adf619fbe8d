"""An image of a result: its bytes, and methods to decode, save and show them."""

import base64
import io
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ign_client import _extras
from ign_client._errors import InputError, unexpected

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

MEDIA: Final = {form: f"image/{form}" for form in ("png", "jpeg", "webp", "gif", "apng")} | {
    "npy": "application/x-npy"
}
"""Format → media type."""
SUFFIXES: Final = {f".{form}": form for form in MEDIA} | {".jpg": "jpeg"}
"""File name suffix → format."""
_Bytes = bytes  # the class below has a field named `bytes`


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image, or an array in format ``npy``: the content of a file, as the service sent it."""

    bytes: _Bytes = field(repr=False)
    format: str

    def png(self) -> _Bytes:
        """The image as a PNG; Pillow converts other formats. Of an animation, the first frame."""
        if self.format in ("png", "apng"):
            return self.bytes
        self.to_pil().save(buffer := io.BytesIO(), "PNG")
        return buffer.getvalue()

    def to_pil(self) -> "PIL.Image.Image":
        """Decode the image; an animation supports `seek`. ``npy``, an array, is an `InputError`."""
        if self.format == "npy":
            raise InputError(
                "format npy holds the model's own numbers: use to_numpy(), or ask for "
                "another format"
            )
        # an APNG is a PNG
        pillow = _extras.pillow()
        name = self.format.upper().removeprefix("A")
        with unexpected(f"the {self.format} cannot be decoded"):
            image: PIL.Image.Image = pillow.open(io.BytesIO(self.bytes), formats=[name])
            image.load()
        return image

    def to_numpy(self) -> "NDArray[np.uint8] | NDArray[np.float32]":
        """Decode an image to uint8 (H, W) or (H, W, C), and ``npy`` to float32 in the range of the
        model.
        """
        numpy = _extras.numpy()
        if self.format == "npy":
            with unexpected("the npy cannot be decoded"):
                rows: NDArray[np.float32] = numpy.load(io.BytesIO(self.bytes), allow_pickle=False)
            return rows
        return numpy.array(self.to_pil())

    def save(self, path: "str | os.PathLike[str]") -> Path:
        """Write the bytes to a file and return its path; `InputError` if the suffix of the name
        belongs to another format.

        An existing file is replaced by a rename, a link stays a link, and devices and pipes are
        written to.
        """
        path = Path(path)
        form = SUFFIXES.get(path.suffix.lower(), self.format)
        # an APNG is a PNG with more frames
        if form.removeprefix("a") != self.format.removeprefix("a"):
            text = f"the name says {form}, but this is {self.format}; the option format chooses it"
            raise InputError(f"{path.name}: {text}")
        if path.exists() and not path.is_file():
            path.write_bytes(self.bytes)
            return path
        target = Path(os.path.realpath(path))
        part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
        try:
            part.write_bytes(self.bytes)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return path

    def _repr_html_(self) -> str | None:
        """What a notebook shows; None for format ``npy``, of which it shows the repr."""
        if self.format == "npy":
            return None
        data = base64.b64encode(self.bytes).decode("ascii")
        style = "min-height:84px;image-rendering:pixelated;margin:2px"
        return f'<img style="{style}" src="data:{MEDIA[self.format]};base64,{data}">'
