"""Where a picture lies in the model's canvas. All sizes are (width, height)."""

from typing import Literal, NamedTuple

from PIL import Image

Resize = Literal["fit", "crop", "stretch"]


class Geometry(NamedTuple):
    """Which part of a picture is used, how large it becomes, and where it lies in the model's canvas."""

    box: tuple[int, int, int, int]  # of the picture, what is used
    size: tuple[int, int]  # to which it is resized
    offset: tuple[int, int]  # where it lies in the model's canvas


def fit_geometry(size: tuple[int, int], target: tuple[int, int], resize: Resize) -> Geometry:
    """Where the picture goes; all sizes are (width, height)."""
    box = (0, 0, *size)
    if resize == "fit":
        inner = _inscribed(size, target)
        return Geometry(box, inner, _centred(inner, target))
    if resize == "crop":
        inner = _inscribed(target, size)
        left, top = _centred(inner, size)
        return Geometry((left, top, left + inner[0], top + inner[1]), target, (0, 0))
    return Geometry(box, target, (0, 0))


def _inscribed(shape: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """The largest size of `shape`'s proportions inside `frame`; exact: integers until the last division."""
    (width, height), (frame_width, frame_height) = shape, frame
    if frame_width * height <= frame_height * width:
        return frame_width, max(1, round(height * frame_width / width))
    return max(1, round(width * frame_height / height)), frame_height


def _centred(inner: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int]:
    """Left and top margin; an odd pixel goes right and below."""
    return (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2


def place_on_canvas(
    image: Image.Image,
    geometry: Geometry,
    target: tuple[int, int],
    fill: tuple[int, ...],
    resample: Image.Resampling,
) -> Image.Image:
    """Cut, resize unless the size is right, and lay the picture on a canvas of `target` size and `fill` colour."""
    left, top, right, bottom = geometry.box
    # Cut before resizing: given a box, Pillow's filter would still see the pixels around it.
    image = _paste_on_canvas(image, (right - left, bottom - top), (-left, -top), fill)
    if image.size != geometry.size:
        image = image.resize(geometry.size, resample)
    return _paste_on_canvas(image, target, geometry.offset, fill)


def _paste_on_canvas(
    image: Image.Image, size: tuple[int, int], offset: tuple[int, int], fill: tuple[int, ...]
) -> Image.Image:
    if image.size == size:
        return image
    canvas = Image.new(image.mode, size, fill)
    canvas.paste(image, offset)
    return canvas
