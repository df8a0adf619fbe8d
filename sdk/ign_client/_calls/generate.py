"""`/generate`."""

from collections.abc import Sequence

from ign_client import _answers
from ign_client import _bodies as bodies
from ign_client._calls.common import Format, call
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
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Images[Image]]:
    """New pictures: f^k of seeded noise.

    Args:
        model: ``name`` or ``name/version``.
        n: how many, 1…64.
        seed: 0…2³² − 1; the same one gives the same pictures. Chosen by the service when not given.
        offset: index of the first, so that pictures of one seed can be had separately.
        steps: k, applications of f; the model's own recommendation when not given.
        tolerance: stop a row once mean |f(y) − y| of its last step is below it.
        record: ascending step numbers, 0 = the noise, whose pictures come back as ``trajectory``.
        noise_scale: factor of the noise, 0…2.
        score: measure ``drift``, at the price of one more step.
        format: of the pictures.
        timeout: seconds for one attempt.
        request_id: echoed by the service.
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
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Raw]:
    """The same in one file: a picture, a near-square contact sheet, or with ``npy`` float32 N×C×H×W.

    Args:
        form: of the file.
        model, n, seed, offset, steps, tolerance, noise_scale, score, timeout, request_id: as for `generate`.
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
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[EventReader[Image]]:
    """The same as it happens: `Step` for every recorded step and every row's last one, `Progress`, and `Done`.

    ``timeout`` bounds the wait for the first event. Attempts are repeated until then, and no longer. Leaving the
    stream cancels the work.

    Args:
        model, n, seed, offset, steps, tolerance, record, noise_scale, score, format: as for `generate`.
        timeout: seconds until the first event.
        request_id: echoed by the service.
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
    )
    return call("/generate", events(_answers.image, record), bodies.json_body(options), timeout, request_id, EVENTS)
