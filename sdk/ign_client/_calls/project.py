"""`/project` and `/score`: what takes pictures."""

from collections.abc import Sequence

from ign_client import _answers
from ign_client import _bodies as bodies
from ign_client._calls.common import Format, Invert, Resize, call
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
    """How real pictures look to the model: how far f moves them, beside held-out real ones.

    Args:
        images, model, resize, invert, timeout, request_id: as for `project`.
    """
    body = bodies.upload(images, bodies.options(model=model, resize=resize, invert=invert), None, None)
    return call("/score", _answers.scores, body, timeout, request_id)
