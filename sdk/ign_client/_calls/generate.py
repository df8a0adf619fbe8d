"""`/generate`."""

from __future__ import annotations  # so that signatures show the names of types, not what they stand for

from collections.abc import Sequence

from ign_client import _answers
from ign_client import _bodies as bodies
from ign_client._calls.common import Format, Resample, call
from ign_client._events import EVENTS, EventReader, events
from ign_client._results import Image, Images, Raw
from ign_client._wire import UNSET, Call, Timeout


def generate(
    *,
    model: str | None = None,
    n: int = 1,
    seed: int | None = None,
    offset: int = 0,
    steps: int | None = None,
    tolerance: float | None = None,
    record: Sequence[int] | None = None,
    noise_scale: float = 1.0,
    score: bool = False,
    format: Format = "png",
    scale: int = 1,
    resample: Resample = "nearest",
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Images[Image]]:
    """Generate pictures: f^k(z) of seeded noise z.

    Args:
        model: ``name`` or ``name/version``.
        n: number of pictures, 1…64.
        seed: 0…2³² − 1; the same seed gives the same pictures. By default the service chooses one.
        offset: index of the first picture of the seed.
        steps: k, the number of applications of f; by default the recommendation of the model.
        tolerance: stop a row when mean |f(y) − y| of its last step is below this value.
        record: ascending step numbers whose pictures are returned as ``trajectory``; step 0 is the noise.
        noise_scale: factor of the noise, 0…2.
        score: also measure ``drift``, which costs one more step.
        format: of the pictures.
        scale: factor that enlarges the pictures, 1…32.
        resample: of enlarged pictures: ``nearest`` repeats pixels, ``smooth`` interpolates them.
        timeout: seconds for one attempt.
        request_id: repeated by the service in the response.
    """
    options = bodies.options(
        model=model,
        n=n,
        seed=seed,
        offset=offset,
        steps=steps,
        tolerance=tolerance,
        record=record,
        noise_scale=noise_scale,
        score=score,
        format=format,
        **bodies.size(scale, resample),
    )
    return call("/generate", _answers.images(_answers.image), bodies.json_body(options), timeout, request_id)


def generate_as(
    form: Format,
    *,
    model: str | None = None,
    n: int = 1,
    seed: int | None = None,
    offset: int = 0,
    steps: int | None = None,
    tolerance: float | None = None,
    noise_scale: float = 1.0,
    score: bool = False,
    scale: int = 1,
    resample: Resample = "nearest",
    columns: int | None = None,
    gap: int = 0,
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Raw]:
    """Like `generate`, but as one file: a picture, a near-square contact sheet, or ``npy`` float32 (N, C, H, W).

    Args:
        form: format of the file.
        model, n, seed, offset, steps, tolerance, noise_scale, score, scale, resample, timeout, request_id: as for
            `generate`.
        columns: of a contact sheet; about the square root of the number of pictures by default.
        gap: pixels between the pictures of a sheet, 0…64.
    """
    options = bodies.options(
        model=model,
        n=n,
        seed=seed,
        offset=offset,
        steps=steps,
        tolerance=tolerance,
        noise_scale=noise_scale,
        score=score,
        **bodies.layout(scale, resample, columns, gap),
    )
    return call("/generate", _answers.raw, bodies.json_body(options), timeout, request_id, form)


def stream_generate(
    *,
    model: str | None = None,
    n: int = 1,
    seed: int | None = None,
    offset: int = 0,
    steps: int | None = None,
    tolerance: float | None = None,
    record: Sequence[int] | None = None,
    noise_scale: float = 1.0,
    score: bool = False,
    format: Format = "png",
    scale: int = 1,
    resample: Resample = "nearest",
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[EventReader[Image]]:
    """Like `generate`, but as a stream of events: `Step` for each recorded and each last step, `Progress`, and `Done`.

    ``timeout`` limits the wait for the first event. The client retries only before the first event. Closing the
    stream cancels the computation.

    Args:
        model, n, seed, offset, steps, tolerance, record, noise_scale, score, format, scale, resample: as for
            `generate`.
        timeout: seconds until the first event.
        request_id: repeated by the service in the response.
    """
    options = bodies.options(
        model=model,
        n=n,
        seed=seed,
        offset=offset,
        steps=steps,
        tolerance=tolerance,
        record=record,
        noise_scale=noise_scale,
        score=score,
        format=format,
        **bodies.size(scale, resample),
    )
    return call("/generate", events(_answers.image, record), bodies.json_body(options), timeout, request_id, EVENTS)
