"""Encode 8-bit frames as an animated WebP, GIF or APNG."""

import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

from PIL import Image

from service.images.encode import check_sides
from service.images.pixels import Pixels, Resample, enlarge

AnimationFormat = Literal["webp", "gif", "apng"]


def animate(
    frames: Pixels,
    animation_format: AnimationFormat,
    *,
    fps: float,
    loop: bool = True,
    scale: int = 1,
    resample: Resample = "nearest",
    check: Callable[[], None] = lambda: None,
) -> bytes:
    """Encode frames as one animation, by default without end.

    WebP and APNG are lossless. GIF keeps grey and reduces RGB to 256 colours per frame. Pillow stores equal
    neighbouring frames once and adds their durations.

    ``frames`` are N ≥ 1 images, uint8 (N, H, W) grey or (N, H, W, 3) RGB. ``check`` is called before each is prepared;
    what it raises ends the work. Raises as `check_sides`.
    """
    check_sides(animation_format, frames.shape[2] * scale, frames.shape[1] * scale)
    images = []
    for frame in frames:
        check()
        images.append(_image(frame, animation_format, scale, resample))
    options: dict[str, Any] = {"duration": _durations(len(images), fps, tick=10 if animation_format == "gif" else 1)}
    if animation_format == "webp":
        options |= {"lossless": True, "method": 0, "quality": 0, "loop": 0 if loop else 1}
    elif animation_format == "apng":
        options |= {"compress_level": 1, "loop": 0 if loop else 1}
    elif loop:
        options["loop"] = 0  # GIF without a loop count plays once
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        "PNG" if animation_format == "apng" else animation_format.upper(),
        save_all=True,
        append_images=images[1:],
        **options,
    )
    return buffer.getvalue()


def _image(frame: Pixels, animation_format: AnimationFormat, scale: int, resample: Resample) -> Image.Image:
    """One frame, enlarged.

    The palette for GIF is made before, because Pillow takes 40 times as long for one of an enlarged frame.
    """
    if animation_format != "gif" or frame.ndim == 2 or scale == 1:
        return Image.fromarray(enlarge(frame, scale, resample))
    reduced = Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE)
    if resample == "nearest":
        return reduced.resize((frame.shape[1] * scale, frame.shape[0] * scale), Image.Resampling.NEAREST)
    return Image.fromarray(enlarge(frame, scale, resample)).quantize(palette=reduced, dither=Image.Dither.NONE)


def _durations(n: int, fps: float, tick: int) -> list[int]:
    """Duration of each frame in ms: multiples of `tick`, so that frame k ends as near as possible to k / fps.

    30 fps in ticks of 10 ms is 30, 40, 30, 30, 40, 30…: rounding errors do not accumulate.
    """
    ends = [round(k * 1000 / fps / tick) * tick for k in range(n + 1)]
    return [end - start for start, end in pairwise(ends)]
