"""`/project` and `/score`, which take pictures."""

from __future__ import annotations  # so that signatures show the names of types, not what they stand for

from collections.abc import Sequence

from ign_client import _answers
from ign_client import _bodies as bodies
from ign_client._calls.common import Format, Invert, Resample, Resize, call
from ign_client._events import EVENTS, EventReader, events
from ign_client._inputs import PictureLike
from ign_client._results import Images, ProjectedImage, Raw, Scores
from ign_client._wire import UNSET, Call, Timeout


def project(
    images: PictureLike | Sequence[PictureLike],
    *,
    model: str | None = None,
    steps: int | None = None,
    tolerance: float | None = None,
    record: Sequence[int] | None = None,
    score: bool = False,
    format: Format = "png",
    scale: int = 1,
    resample: Resample = "nearest",
    strength: float = 1.0,
    resize: Resize = "fit",
    invert: Invert = "auto",
    mask: PictureLike | None = None,
    masks: Sequence[PictureLike] | None = None,
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Images[ProjectedImage]]:
    """Project pictures onto the model's distribution: f^k(x).

    Args:
        images: one picture or several: paths, bytes, open files, PIL images, uint8 arrays, or earlier results.
        model, steps, tolerance, score, format, scale, resample: as for `generate`.
        record: ascending step numbers whose pictures are returned as ``trajectory``; 0 is the prepared picture.
        strength: s of (1 − s)·x + s·f^k(x), 0…1.
        resize: ``fit`` adds a letterbox, ``crop`` cuts the centre, ``stretch`` changes the aspect ratio.
        invert: exchange light and dark; ``auto`` does so if the model is light on dark and the border is light.
        mask: for all pictures: white = regenerate, black = keep; or a bool array, True = regenerate.
        masks: one mask for each picture, instead of ``mask``.
        timeout: seconds for one attempt.
        request_id: repeated by the service in the response.
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
        **bodies.size(scale, resample),
    )
    body = bodies.upload(images, options, mask, masks)
    return call("/project", _answers.images(_answers.projected), body, timeout, request_id)


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
    scale: int = 1,
    resample: Resample = "nearest",
    columns: int | None = None,
    gap: int = 0,
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Raw]:
    """Like `project`, but as one file: a picture, a near-square contact sheet, or ``npy`` float32 (N, C, H, W).

    Args:
        form: format of the file.
        images, model, steps, tolerance, score, strength, resize, invert, mask, masks, scale, resample, timeout,
            request_id: as for `project`.
        columns, gap: of a sheet, as for `generate_as`.
    """
    options = bodies.options(
        model=model,
        steps=steps,
        tolerance=tolerance,
        score=score,
        strength=strength,
        resize=resize,
        invert=invert,
        **bodies.layout(scale, resample, columns, gap),
    )
    return call("/project", _answers.raw, bodies.upload(images, options, mask, masks), timeout, request_id, form)


def stream_project(
    images: PictureLike | Sequence[PictureLike],
    *,
    model: str | None = None,
    steps: int | None = None,
    tolerance: float | None = None,
    record: Sequence[int] | None = None,
    score: bool = False,
    format: Format = "png",
    scale: int = 1,
    resample: Resample = "nearest",
    strength: float = 1.0,
    resize: Resize = "fit",
    invert: Invert = "auto",
    mask: PictureLike | None = None,
    masks: Sequence[PictureLike] | None = None,
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[EventReader[ProjectedImage]]:
    """Like `project`, but as a stream of events; see `stream_generate`.

    Args:
        images, model, steps, tolerance, record, score, format, scale, resample, strength, resize, invert, mask,
            masks: as for `project`.
        timeout: seconds until the first event.
        request_id: repeated by the service in the response.
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
        **bodies.size(scale, resample),
    )
    body = bodies.upload(images, options, mask, masks)
    return call("/project", events(_answers.projected, record), body, timeout, request_id, EVENTS)


def score(
    images: PictureLike | Sequence[PictureLike],
    *,
    model: str | None = None,
    resize: Resize = "fit",
    invert: Invert = "auto",
    timeout: Timeout = UNSET,
    request_id: str | None = None,
) -> Call[Scores]:
    """Score pictures: the distance that f moves them, compared with held-out real pictures.

    Args:
        images, model, resize, invert, timeout, request_id: as for `project`.
    """
    body = bodies.upload(images, bodies.options(model=model, resize=resize, invert=invert), None, None)
    return call("/score", _answers.scores, body, timeout, request_id)
