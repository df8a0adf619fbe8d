"""Build the bodies of requests from options and pictures."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ign_client import _inputs
from ign_client._errors import InputError
from ign_client._inputs import PictureLike, PointLike, Term
from ign_client._wire import Body, MultipartBody

Options = dict[str, Any]


def options(**values: Any) -> Options:
    """The options that are not None; the service has a default for the others."""
    return {name: value for name, value in values.items() if value is not None}


def size(scale: int, resample: str) -> Options:
    """The options of enlarged pictures; none if they keep their size."""
    return {} if scale == 1 else {"scale": scale, "resample": resample}


def layout(scale: int, resample: str, columns: int | None, gap: int) -> Options:
    """The options of a sheet that differ from the service's defaults."""
    return {**size(scale, resample), **options(columns=columns, gap=gap or None)}


def json_body(members: Mapping[str, Any]) -> bytes:
    """Encode members as JSON; numpy scalars and arrays become numbers and lists.

    Raises:
        InputError: a value cannot be encoded.
    """
    return ("{" + ",".join(_member(name, value) for name, value in members.items()) + "}").encode("ascii")


def _member(name: str, value: Any) -> str:
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False, default=_to_python)
    except (TypeError, ValueError) as exc:
        raise InputError(f"{name}: {exc}") from exc
    return f'"{name}":{text}'


def upload(
    images: PictureLike | Sequence[PictureLike],
    options: Options,
    mask: PictureLike | None,
    masks: Sequence[PictureLike] | None,
) -> Body:
    """Build the body of an upload: a multipart form, which needs no base64; or JSON if each picture has its own mask.

    Raises:
        InputError: a picture or mask cannot be sent, or ``mask`` and ``masks`` are both given.
    """
    contents = _inputs.pictures(images)
    if masks is not None:
        if mask is not None:
            raise InputError("masks: give mask or masks, not both")
        encoded = [_inputs.base64_text(_inputs.mask(picture, f"masks.{i}")) for i, picture in enumerate(masks)]
        pictures = [_inputs.base64_text(data) for data in contents]
        return json_body({**options, "images": pictures, "masks": encoded})
    files = [("image", data) for data in contents]
    if mask is not None:
        files.append(("mask", _inputs.mask(mask, "mask")))
    return MultipartBody(fields={name: _text(value) for name, value in options.items()}, files=files)


def path(points: Sequence[PointLike], grid: tuple[int, int] | None, options: Options) -> bytes:
    """Build the JSON body of an interpolation along a path, or over a grid of (rows, columns).

    Raises:
        InputError: a point cannot be sent.
    """
    members = {
        **options,
        "points": [_inputs.point(value, f"points.{i}") for i, value in enumerate(_as_sequence(points, "points"))],
    }
    if grid is not None:
        try:
            rows, cols = grid
        except (TypeError, ValueError) as exc:
            raise InputError(f"grid: expected (rows, columns), not {grid!r}") from exc
        members["grid"] = {"rows": rows, "cols": cols}
    return json_body(members)


def weighted_sum(terms: Sequence[Term | PointLike], options: Options) -> bytes:
    """Build the JSON body of a weighted sum of latents.

    Raises:
        InputError: a term cannot be sent.
    """
    members = []
    for i, value in enumerate(_as_sequence(terms, "terms")):
        term = value if isinstance(value, Term) else Term(value)
        members.append({**_inputs.point(term.point, f"terms.{i}"), "weight": term.weight})
    return json_body({**options, "terms": members})


def _as_sequence(values: object, field: str) -> Sequence[Any]:
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise InputError(f"{field}: expected a list of latents, not {type(values).__name__}")
    return values


def _to_python(value: Any) -> Any:
    if isinstance(value, range):
        return list(value)
    to_list = getattr(value, "tolist", None)
    if not callable(to_list):
        raise TypeError(f"{type(value).__name__} is no number, text or list of them")
    return to_list()


def _text(value: Any) -> str:
    """The text of an option in a form."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(str(item) for item in value)
    return str(value)
