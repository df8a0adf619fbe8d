"""The methods of both clients: what each may be told, and the request it becomes.

Nothing here does I/O but reading the pictures handed in.
Options that are not given are left to the service, whose defaults the signatures show. Every call takes

- `timeout`: seconds for one attempt; None for the service's own limit; not given: the client's;
- `request_id`: an id of your own, ``[A-Za-z0-9._-]{1,128}``, which the service echoes and logs;

and raises

- `InputError`: what was handed in cannot be sent;
- `TransportError`: nobody answered;
- `StatusError`: the service said no; one class for every status;
- `UnexpectedAnswer`: what answered is not ign-service.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias, TypeVar
from urllib.parse import quote

from ign_client import _answers
from ign_client import _bodies as bodies
from ign_client._errors import InputError
from ign_client._events import EVENTS, EventReader, events
from ign_client._inputs import PictureLike, PointLike, Term
from ign_client._results import Card, Frame, Image, Images, Models, ProjectedImage, Raw, Readiness, Scores
from ign_client._wire import UNSET, Body, Call, Response, Timeout

T = TypeVar("T")
Format: TypeAlias = Literal["png", "jpeg", "webp", "npy"]
PathForm: TypeAlias = Literal["png", "jpeg", "webp", "npy", "gif", "apng"]
Resize: TypeAlias = Literal["fit", "crop", "stretch"]
Invert: TypeAlias = bool | Literal["auto"]

_MEDIA: Final = {form: media for media, form in _answers.FORMATS.items()} | {EVENTS: EVENTS}


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
    return _call("/generate", _answers.images(_answers.image), bodies.json_body(options), timeout, request_id)


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
    return _call("/generate", _answers.raw, bodies.json_body(options), timeout, request_id, form)


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
    return _call("/generate", events(_answers.image, record), bodies.json_body(options), timeout, request_id, EVENTS)


def project(
    images: PictureLike | Sequence[PictureLike],
    *,
    model: str | None = None,
    steps: int | None = None,
    tolerance: float | None = None,
    record: Sequence[int] | None = None,
    score: bool = False,
    format: Format = "png",
    strength: float = 1.0,
    resize: Resize = "fit",
    invert: Invert = "auto",
    mask: PictureLike | None = None,
    masks: Sequence[PictureLike] | None = None,
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Images[ProjectedImage]]:
    """Pictures made real: f^k(x).

    Args:
        images: one picture or several: paths, bytes, open files, PIL images, uint8 arrays, or earlier answers.
        model, steps, tolerance, score, format: as for `generate`.
        record: ascending step numbers, 0 = the prepared picture, whose pictures come back as ``trajectory``.
        strength: s of (1 − s)·x + s·f^k(x), 0…1.
        resize: ``fit`` letterboxes on the background, ``crop`` cuts centrally, ``stretch`` ignores proportions.
        invert: exchange light and dark; ``auto``: where the model draws light on dark and the border is light.
        mask: one for all pictures: white = regenerate, black = keep. An array of booleans will do.
        masks: one for each picture, instead of ``mask``.
        timeout: seconds for one attempt.
        request_id: echoed by the service.
    """
    options = bodies.options(
        model=model,
        steps=steps,
        tolerance=tolerance,
        record=record,
        score=score,
        format=format,
        strength=strength,
        resize=resize,
        invert=invert,
    )
    body = bodies.upload(images, options, mask, masks)
    return _call("/project", _answers.images(_answers.projected), body, timeout, request_id)


def project_as(
    form: Format,
    images: PictureLike | Sequence[PictureLike],
    *,
    model: str | None = None,
    steps: int | None = None,
    tolerance: float | None = None,
    score: bool = False,
    strength: float = 1.0,
    resize: Resize = "fit",
    invert: Invert = "auto",
    mask: PictureLike | None = None,
    masks: Sequence[PictureLike] | None = None,
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Raw]:
    """The same in one file: a picture, a near-square contact sheet, or with ``npy`` float32 N×C×H×W.

    Args:
        form: of the file.
        images, model, steps, tolerance, score, strength, resize, invert, mask, masks, timeout, request_id: as for
            `project`.
    """
    options = bodies.options(
        model=model, steps=steps, tolerance=tolerance, score=score, strength=strength, resize=resize, invert=invert
    )
    return _call("/project", _answers.raw, bodies.upload(images, options, mask, masks), timeout, request_id, form)


def stream_project(
    images: PictureLike | Sequence[PictureLike],
    *,
    model: str | None = None,
    steps: int | None = None,
    tolerance: float | None = None,
    record: Sequence[int] | None = None,
    score: bool = False,
    format: Format = "png",
    strength: float = 1.0,
    resize: Resize = "fit",
    invert: Invert = "auto",
    mask: PictureLike | None = None,
    masks: Sequence[PictureLike] | None = None,
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[EventReader[ProjectedImage]]:
    """The same as it happens; see `stream_generate`.

    Args:
        images, model, steps, tolerance, record, score, format, strength, resize, invert, mask, masks: as for
            `project`.
        timeout: seconds until the first event.
        request_id: echoed by the service.
    """
    options = bodies.options(
        model=model,
        steps=steps,
        tolerance=tolerance,
        record=record,
        score=score,
        format=format,
        strength=strength,
        resize=resize,
        invert=invert,
    )
    body = bodies.upload(images, options, mask, masks)
    return _call("/project", events(_answers.projected, record), body, timeout, request_id, EVENTS)


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
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Images[Frame]]:
    """f^k along a path of latents, or over a grid between four of them.

    Args:
        points: 2…16 latents: seeds, `Seed`, pictures, or float32 (C, H, W) arrays. Of a grid, four corners: top left,
            top right, bottom left, bottom right.
        model, steps, format: as for `generate`.
        frames: over the whole path, ends included, 2…256; 9 when not given.
        method: along the arc, or straight.
        loop: return to the first point.
        grid: rows and columns, instead of ``frames`` and ``loop``.
        timeout: seconds for one attempt.
        request_id: echoed by the service.
    """
    body = bodies.path(
        points, grid, bodies.options(model=model, frames=frames, method=method, loop=loop, steps=steps, format=format)
    )
    return _call("/latent-interpolate", _answers.images(_answers.frame), body, timeout, request_id)


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
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Raw]:
    """The same in one file: ``gif``, ``apng`` and ``webp`` an animation, ``png`` and ``jpeg`` a strip, or ``npy``.

    Args:
        form: of the file; of a grid, ``webp`` is a sheet and there is no animation.
        points, model, frames, method, loop, grid, steps, timeout, request_id: as for `latent_interpolate`.
        fps: frames per second of an animation, 1…50.
    """
    body = bodies.path(
        points, grid, bodies.options(model=model, frames=frames, method=method, loop=loop, steps=steps, fps=fps)
    )
    return _call("/latent-interpolate", _answers.raw, body, timeout, request_id, form)


def latent_arithmetic(
    terms: Sequence[Term | PointLike],
    *,
    model: str | None = None,
    normalize: bool = True,
    steps: int | None = None,
    format: Format = "png",
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Images[Image]]:
    """f^k of a weighted sum of latents: one picture.

    Args:
        terms: 1…16, each a `Term`, or a latent as for `latent_interpolate` with weight 1.
        model, steps, format: as for `generate`.
        normalize: rescale the sum to the length of the model's noise.
        timeout: seconds for one attempt.
        request_id: echoed by the service.
    """
    body = bodies.weighted_sum(terms, bodies.options(model=model, normalize=normalize, steps=steps, format=format))
    return _call("/latent-arithmetic", _answers.images(_answers.image), body, timeout, request_id)


def latent_arithmetic_as(
    form: Format,
    terms: Sequence[Term | PointLike],
    *,
    model: str | None = None,
    normalize: bool = True,
    steps: int | None = None,
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Raw]:
    """The same as a file.

    Args:
        form: of the file.
        terms, model, normalize, steps, timeout, request_id: as for `latent_arithmetic`.
    """
    body = bodies.weighted_sum(terms, bodies.options(model=model, normalize=normalize, steps=steps))
    return _call("/latent-arithmetic", _answers.raw, body, timeout, request_id, form)


def score(
    images: PictureLike | Sequence[PictureLike],
    *,
    model: str | None = None,
    resize: Resize = "fit",
    invert: Invert = "auto",
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Scores]:
    """How real pictures look to the model: how far f moves them, beside held-out real ones.

    Args:
        images, model, resize, invert, timeout, request_id: as for `project`.
    """
    body = bodies.upload(images, bodies.options(model=model, resize=resize, invert=invert), None, None)
    return _call("/score", _answers.scores, body, timeout, request_id)


def models(*, timeout: Timeout = UNSET, request_id: str | None = None) -> Call[Models]:
    """What is served, the default, and the limits of a request.

    Args:
        timeout: seconds for one attempt.
        request_id: echoed by the service.
    """
    return _call("/models", _answers.models, None, timeout, request_id)


def model(name: str, *, timeout: Timeout = UNSET, request_id: str | None = None) -> Call[Card]:
    """One card, whole.

    Args:
        name: ``name``, which is its highest version, or ``name/version``.
        timeout: seconds for one attempt.
        request_id: echoed by the service.
    """
    parts = name.split("/")
    if len(parts) > 2 or not all(parts):
        raise InputError(f"name: expected name or name/version, not {name!r}")
    return _call(
        "/models/" + "/".join(quote(part, safe="") for part in parts), _answers.card, None, timeout, request_id
    )


def ready(*, timeout: Timeout = UNSET, request_id: str | None = None) -> Call[Readiness]:
    """Whether the service takes requests. "Not now" is an answer, not an error, and is not asked again.

    Args:
        timeout: seconds for one attempt.
        request_id: echoed by the service.
    """
    return _call("/readyz", _answers.readiness, None, timeout, request_id, statuses=(200, 503))


def _call(
    path: str,
    parse: Callable[[Response], T],
    body: Body | None,
    timeout: Timeout,
    request_id: str | None,
    form: str | None = None,
    statuses: tuple[int, ...] = (200,),
) -> Call[T]:
    if form is not None and form not in _MEDIA:
        raise InputError(f"form: expected one of {', '.join(_answers.FORMATS.values())}, not {form!r}")
    accept = "application/json" if form is None else _MEDIA[form]
    return Call(
        path=path,
        parse=parse,
        body=body,
        accept=accept,
        timeout=timeout,
        request_id=request_id,
        statuses=frozenset(statuses),
    )
