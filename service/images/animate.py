"""8-bit frames → an animated WebP, GIF or APNG."""

import io
from itertools import pairwise
from typing import Any, Literal

from PIL import Image

from service.images.encode import check_sides
from service.images.pixels import Pixels

AnimationFormat = Literal["webp", "gif", "apng"]


def animate(frames: Pixels, form: AnimationFormat, *, fps: float, loop: bool = True) -> bytes:
    """Show N ≥ 1 frames, (N, H, W) grey or (N, H, W, 3) RGB, one after the other.

    WebP and APNG are lossless; GIF reduces RGB to 256 colours a frame and keeps grey. Neighbouring equal frames are
    stored once with their times added. Frame times are rounded so that they add up: to 1 ms, in GIF to 10 ms.

    Args:
        frames: what to show.
        form: `webp`, `gif` or `apng`.
        fps: frames per second, 1…50.
        loop: repeat for ever, else stop at the last frame.

    Raises:
        InvalidContent: a side is beyond the format's limit (code `image_too_large`).
    """
    check_sides(form, frames.shape[2], frames.shape[1])
    images = [Image.fromarray(frame) for frame in frames]
    options: dict[str, Any] = {"duration": _durations(len(images), fps, tick=10 if form == "gif" else 1)}
    if form == "webp":
        options |= {"lossless": True, "method": 0, "quality": 0, "loop": 0 if loop else 1}
    elif form == "apng":
        options |= {"compress_level": 1, "loop": 0 if loop else 1}
    elif loop:
        options["loop"] = 0  # GIF without a loop count plays once
    buffer = io.BytesIO()
    images[0].save(
        buffer, "PNG" if form == "apng" else form.upper(), save_all=True, append_images=images[1:], **options
    )
    return buffer.getvalue()


def _durations(n: int, fps: float, tick: int) -> list[int]:
    """Milliseconds of each frame, multiples of `tick` whose running sum is nearest to k / fps."""
    ends = [round(k * 1000 / fps / tick) * tick for k in range(n + 1)]
    return [end - start for start, end in pairwise(ends)]
