"""A plot of the training losses, from the log of a run."""

import dataclasses
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from model_export.errors import UserError
from model_export.training.stages import Weights
from model_export.training.train import LOG

_TERMS: Final = tuple(field.name for field in dataclasses.fields(Weights))
_COLOURS: Final = (*(f"C{i}" for i in range(10)), "black", "gold")  # one for each term; matplotlib has ten
_MAX_POINTS: Final = 150  # of a curve in a stage; more are averaged
_MIN_VALUE: Final = 1e-8  # the logarithmic scale needs values above 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the log: the terms of the loss at a step."""

    step: int
    stage: str
    terms: Mapping[str, float]


def plot_losses(run: Path) -> bytes:
    """Plot every term of the loss, unweighted, against the step; vertical lines mark the stages."""
    path = run / LOG
    if not path.is_file():
        raise UserError(f"no log at {path}")
    entries = list(_read(path.read_text(encoding="utf-8", errors="replace")))
    if not any(entry.terms for entry in entries):
        raise UserError(f"{path}: no losses in it")
    # Text stays text instead of outlines, and ids are the same in every run: equal logs give equal files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "model_export", "font.size": 9}):
        figure = Figure(figsize=(9, 3.7), layout="constrained")
        axes = figure.add_subplot(yscale="log", xlabel="step", xmargin=0)
        axes.grid(axis="y", color="#ddd")
        start = entries[0].step  # not 0 in a run with `--start`
        for stage, group in groupby(entries, key=lambda entry: entry.stage):
            lines = list(group)
            axes.axvline(start, color="#999", linestyle=":")
            # The name stands above the axes: x in data units, y in units of the axes.
            axes.text(start, 1.02, stage, transform=axes.get_xaxis_transform(), color="#555")
            for term, colour in zip(_TERMS, _COLOURS, strict=True):
                points = _average([(line.step, line.terms[term]) for line in lines if term in line.terms])
                if points:
                    marker = "." if len(points) == 1 else ""  # a line needs two points
                    axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, marker=marker, label=term)
            start = lines[-1].step
        # A term that occurs in several stages has several curves: one legend entry each.
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axes.legend(unique.values(), unique.keys(), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _read(text: str) -> Iterator[_Entry]:
    """The entries of a log, without lines that a crash has cut. Tightness is negative, so absolute values are shown."""
    for line in text.splitlines():
        try:
            values = json.loads(line)
            step, stage = int(values["step"]), str(values["stage"])
            terms = {name: max(abs(float(values[name])), _MIN_VALUE) for name in _TERMS if name in values}
        except (ValueError, KeyError, TypeError):
            continue
        if step > 0 and all(map(math.isfinite, terms.values())):
            yield _Entry(step, stage, terms)


def _average(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Means of neighbours, so that at most `_MAX_POINTS` remain."""
    size = math.ceil(len(points) / _MAX_POINTS)
    groups = (points[i : i + size] for i in range(0, len(points), size or 1))
    return [(sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]
