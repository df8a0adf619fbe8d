"""An image of a result: its bytes, methods to decode and save them, and the HTML that notebooks
show for results.
"""

import base64
import io
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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
_COMPATIBLE: Final = {("png", "apng"), ("apng", "png")}  # an APNG is a PNG with more frames
_SHOWN_AS_COUNT: Final = {"images": "images", "trajectory": "steps"}
_Bytes = bytes  # the class below has a field named `bytes`


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Picture:
    """An image, or an array in format ``npy``: the content of a file, as the service sent it."""

    bytes: _Bytes
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
        pixels: NDArray[np.uint8] = numpy.array(self.to_pil())
        return pixels

    def save(self, path: "str | os.PathLike[str]") -> Path:
        """Write the bytes to a file atomically and return its path; an existing file is replaced.

        `InputError` if the suffix of the name belongs to another format.
        """
        path = Path(path)
        suffix_format = SUFFIXES.get(path.suffix.lower(), self.format)
        if suffix_format != self.format and (suffix_format, self.format) not in _COMPATIBLE:
            text = (
                f"the name says {suffix_format}, but this is {self.format}; ask the service for it"
            )
            raise InputError(f"{path.name}: {text}")
        _write(path, self.bytes)
        return path

    def __repr__(self) -> str:
        return result_repr(self)

    def _repr_html_(self) -> str:
        return figure(self)

    def _repr_png_(self) -> _Bytes | None:
        """The bytes of a PNG, for frontends that show images but no HTML; None for other
        formats.
        """
        return self.bytes if self.format in ("png", "apng") else None


def result_repr(value: Any) -> str:
    """The repr of a result, without members that are None or empty; bytes and long lists are shown
    by their size.
    """
    parts = []
    for name in (field.name for field in fields(value)):
        member = getattr(value, name)
        if isinstance(member, bytes):
            parts.append(f"{name}=<{len(member)} bytes>")
        elif member and name in _SHOWN_AS_COUNT:
            parts.append(f"{name}=<{len(member)} {_SHOWN_AS_COUNT[name]}>")
        elif member is not None and member != ():
            parts.append(f"{name}={member!r}")
    return f"{type(value).__name__}({', '.join(parts)})"


def _write(path: Path, data: bytes) -> None:
    """Replace a file by a rename. A link stays a link, devices and pipes are written to; an OSError
    names ``path``.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        try:
            part.write_bytes(data)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as exc:
        exc.filename = os.fspath(path)
        exc.filename2 = None
        raise


# What notebooks show

_MAX_SHOWN: Final = 100


def figure(picture: Any) -> str:
    """An <img> of one image; for format ``npy``, its repr."""
    if picture.format == "npy":
        return f"<pre>{escape(repr(picture))}</pre>"
    data = base64.b64encode(picture.bytes).decode("ascii")
    values = {
        name: getattr(picture, name, None)
        for name in ("index", "steps", "step", "distance", "drift")
    }
    title = ", ".join(
        f"{name} {_cell(value)}" for name, value in values.items() if value is not None
    )
    style = "min-height:84px;image-rendering:pixelated;margin:2px"
    return (
        f'<img style="{style}" title="{escape(title)}" '
        f'src="data:{MEDIA[picture.format]};base64,{data}">'
    )


def contact_sheet(pictures: Sequence[Any]) -> str:
    """The images side by side, at most 100, and how many more there are."""
    return f"<div>{''.join(map(figure, pictures[:_MAX_SHOWN]))}</div>" + _more(pictures)


def table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of at most 100 rows, and how many more there are."""
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row) + "</tr>"
        for row in rows[:_MAX_SHOWN]
    )
    return f"<table><tr>{head}</tr>{body}</table>" + _more(rows)


def _more(items: Sequence[object]) -> str:
    more = len(items) - _MAX_SHOWN
    return f"<p>… and {more} more</p>" if more > 0 else ""


def _cell(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)
