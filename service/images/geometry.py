"""Resize a picture onto the canvas of a model. All sizes are (width, height) in pixels."""

from typing import Literal, NamedTuple

from PIL import Image

Resize = Literal["fit", "crop", "stretch"]


class Geometry(NamedTuple):
    """How a picture is cropped, resized and placed on a canvas."""

    box: tuple[int, int, int, int]  # (left, top, right, bottom) of the part that is used
    size: tuple[int, int]  # of that part after resizing
    offset: tuple[int, int]  # (left, top) on the canvas


def fit_geometry(size: tuple[int, int], target: tuple[int, int], resize: Resize) -> Geometry:
    """The geometry of a picture of ``size`` on a canvas of size ``target``."""
    box = (0, 0, *size)
    if resize == "fit":
        inner = _inscribed(size, target)
        return Geometry(box, inner, _centred(inner, target))
    if resize == "crop":
        inner = _inscribed(target, size)
        left, top = _centred(inner, size)
        return Geometry((left, top, left + inner[0], top + inner[1]), target, (0, 0))
    return Geometry(box, target, (0, 0))


def _inscribed(size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """The largest size with the aspect ratio of `size` inside `frame`; each side is at least 1."""
    (width, height), (frame_width, frame_height) = size, frame
    # Compare products of integers, because quotients of floats could decide wrongly for equal ratios.
    if frame_width * height <= frame_height * width:
        return frame_width, max(1, round(height * frame_width / width))
    return max(1, round(width * frame_height / height)), frame_height


def _centred(inner: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int]:
    """The left and top margin; an odd pixel is on the right and below."""
    return (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2


def place_on_canvas(
    image: Image.Image,
    geometry: Geometry,
    target: tuple[int, int],
    fill: tuple[int, ...],
    resample: Image.Resampling,
) -> Image.Image:
    """Crop a picture, resize it if its size differs, and paste it on a canvas.

    Args:
        image: the picture, upright.
        geometry: of the picture on the canvas.
        target: size of the canvas.
        fill: colour of the canvas, one level per band.
        resample: filter for resizing.
    """
    left, top, right, bottom = geometry.box
    # Crop first. The `box` argument of Pillow's `resize` would let the filter read pixels outside the box.
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
