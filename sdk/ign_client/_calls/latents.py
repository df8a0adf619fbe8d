"""`/latent-interpolate` and `/latent-arithmetic`, which take latents."""

from __future__ import annotations  # so that signatures show the names of types, not what they stand for

from collections.abc import Sequence
from typing import Literal

from ign_client import _answers
from ign_client import _bodies as bodies
from ign_client._calls.common import Format, PathForm, Resample, call
from ign_client._inputs import PointLike, Term
from ign_client._results import Frame, Image, Images, Raw
from ign_client._wire import UNSET, Call, Timeout


def latent_interpolate(
    points: Sequence[PointLike],
    *,
    model: str | None = None,
    frames: int | None = None,
    method: Literal["slerp", "lerp"] = "slerp",
    loop: bool = False,
    grid: tuple[int, int] | None = None,
    steps: int | None = None,
    format: Format = "png",
    scale: int = 1,
    resample: Resample = "nearest",
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Images[Frame]]:
    """Apply f^k along a path of latents, or over a grid between four latents.

    Args:
        points: 2…16 latents: seeds, `Seed`, pictures, or float32 (C, H, W) arrays. A grid needs four: top left, top
            right, bottom left, bottom right.
        model, steps, format, scale, resample: as for `generate`.
        frames: number of frames of the whole path, including both ends, 2…256; 9 by default.
        method: spherical or linear interpolation.
        loop: return to the first point.
        grid: (rows, columns), instead of ``frames`` and ``loop``.
        timeout: seconds for one attempt.
        request_id: repeated by the service in the response.
    """
    body = bodies.path(
        points,
        grid,
        bodies.options(
            model=model,
            frames=frames,
            method=method,
            loop=loop,
            steps=steps,
            format=format,
            **bodies.size(scale, resample),
        ),
    )
    return call("/latent-interpolate", _answers.images(_answers.frame), body, timeout, request_id)


def latent_interpolate_as(
    form: PathForm,
    points: Sequence[PointLike],
    *,
    model: str | None = None,
    frames: int | None = None,
    method: Literal["slerp", "lerp"] = "slerp",
    loop: bool = False,
    grid: tuple[int, int] | None = None,
    steps: int | None = None,
    fps: int = 12,
    scale: int = 1,
    resample: Resample = "nearest",
    columns: int | None = None,
    gap: int = 0,
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Raw]:
    """Like `latent_interpolate`, but as one file.

    ``gif``, ``apng`` and ``webp`` are an animation, ``png`` and ``jpeg`` a strip, and ``npy`` is float32 (N, C, H, W).

    Args:
        form: format of the file. A grid is a sheet; it has no ``gif`` and no ``apng``.
        points, model, frames, method, loop, grid, steps, scale, resample, timeout, request_id: as for
            `latent_interpolate`.
        fps: frames per second of an animation, 1…50.
        columns, gap: of a strip or a sheet, as for `generate_as`; a strip of one row by default.
    """
    body = bodies.path(
        points,
        grid,
        bodies.options(
            model=model,
            frames=frames,
            method=method,
            loop=loop,
            steps=steps,
            fps=fps,
            **bodies.layout(scale, resample, columns, gap),
        ),
    )
    return call("/latent-interpolate", _answers.raw, body, timeout, request_id, form)


def latent_arithmetic(
    terms: Sequence[Term | PointLike],
    *,
    model: str | None = None,
    normalize: bool = True,
    steps: int | None = None,
    format: Format = "png",
    scale: int = 1,
    resample: Resample = "nearest",
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Images[Image]]:
    """Apply f^k to a weighted sum of latents; the result is one picture.

    Args:
        terms: 1…16 terms, each a `Term`, or a latent as for `latent_interpolate` with weight 1.
        model, steps, format, scale, resample: as for `generate`.
        normalize: rescale the sum to the length of the model's noise.
        timeout: seconds for one attempt.
        request_id: repeated by the service in the response.
    """
    options = bodies.options(model=model, normalize=normalize, steps=steps, format=format)
    body = bodies.weighted_sum(terms, options | bodies.size(scale, resample))
    return call("/latent-arithmetic", _answers.images(_answers.image), body, timeout, request_id)


def latent_arithmetic_as(
    form: Format,
    terms: Sequence[Term | PointLike],
    *,
    model: str | None = None,
    normalize: bool = True,
    steps: int | None = None,
    scale: int = 1,
    resample: Resample = "nearest",
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Raw]:
    """Like `latent_arithmetic`, but as one file.

    Args:
        form: format of the file.
        terms, model, normalize, steps, scale, resample, timeout, request_id: as for `latent_arithmetic`.
    """
    options = bodies.options(model=model, normalize=normalize, steps=steps)
    body = bodies.weighted_sum(terms, options | bodies.size(scale, resample))
    return call("/latent-arithmetic", _answers.raw, body, timeout, request_id, form)
