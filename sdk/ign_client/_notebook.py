"""HTML that notebooks show for results: for pictures, scores and models, which are defined on top of this."""

import base64
from collections.abc import Sequence
from html import escape
from typing import Any, Final

_MEDIA: Final = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "apng": "image/apng",
}
_MAX_SHOWN: Final = 100
_STYLE: Final = "min-height:84px;image-rendering:pixelated;margin:2px"


def figure(picture: Any) -> str:
    """An <img> of one picture; for format ``npy``, its repr."""
    if picture.format not in _MEDIA:
        return f"<pre>{escape(repr(picture))}</pre>"
    data = base64.b64encode(picture.bytes).decode("ascii")
    return (
        f'<img style="{_STYLE}" title="{escape(_caption(picture))}" src="data:{_MEDIA[picture.format]};base64,{data}">'
    )


def contact_sheet(pictures: Sequence[Any]) -> str:
    """The pictures side by side, at most 100, and how many more there are."""
    shown = "".join(map(figure, pictures[:_MAX_SHOWN]))
    more = len(pictures) - _MAX_SHOWN
    return f"<div>{shown}</div>" + (f"<p>… and {more} more</p>" if more > 0 else "")


def score_table(scores: Sequence[Any]) -> str:
    """A table with a row for each score, at most 100."""
    names = ("index", "distance", "drift", "percentile", "in_distribution")
    return _table(names, [[getattr(score, name) for name in names] for score in scores])


def model_table(models: Any) -> str:
    """A table with a row for each model in service."""
    rows = [
        (card.ref, "×".join(map(str, card.shape)), card.device, models.default in (card.ref, card.name))
        for card in models
    ]
    return _table(("model", "shape", "device", "default"), rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of at most 100 rows, and how many more there are."""
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row) + "</tr>" for row in rows[:_MAX_SHOWN]
    )
    more = len(rows) - _MAX_SHOWN
    return f"<table><tr>{head}</tr>{body}</table>" + (f"<p>… and {more} more</p>" if more > 0 else "")


def _caption(picture: Any) -> str:
    values = {name: getattr(picture, name, None) for name in ("index", "steps", "step", "distance", "drift")}
    return ", ".join(f"{name} {_cell(value)}" for name, value in values.items() if value is not None)


def _cell(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)
