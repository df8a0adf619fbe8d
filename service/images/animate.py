"""Encode 8-bit frames as an animated WebP, GIF or APNG."""

import io
from itertools import pairwise
from typing import Any, Literal

from PIL import Image

from service.images.encode import check_sides
from service.images.pixels import Pixels

AnimationFormat = Literal["webp", "gif", "apng"]


def animate(frames: Pixels, animation_format: AnimationFormat, *, fps: float, loop: bool = True) -> bytes:
    """Encode frames as one animation.

    WebP and APNG are lossless. GIF keeps grey and reduces RGB to 256 colours per frame. Pillow stores equal
    neighbouring frames once and adds their durations. Durations are multiples of 1 ms, in GIF of 10 ms; the rounding
    errors do not accumulate.

    Args:
        frames: N ≥ 1 frames, uint8 (N, H, W) grey or (N, H, W, 3) RGB.
        animation_format: `webp`, `gif` or `apng`.
        fps: frames per second, 1…50.
        loop: repeat without end; else stop at the last frame.

    Raises:
        InvalidContent: a side is longer than the format allows (code `image_too_large`).
    """
    check_sides(animation_format, frames.shape[2], frames.shape[1])
    images = [Image.fromarray(frame) for frame in frames]
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


def _durations(n: int, fps: float, tick: int) -> list[int]:
    """Duration of each frame in ms: multiples of `tick`, so that frame k ends as near as possible to k / fps."""
    ends = [round(k * 1000 / fps / tick) * tick for k in range(n + 1)]
    return [end - start for start, end in pairwise(ends)]
