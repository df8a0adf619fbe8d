"""Training losses as a small SVG, drawn from a run's log."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from model_export.errors import UserError
from model_export.training.presets import Weights
from model_export.training.train import LOG

_COLOURS: Final[Mapping[str, str]] = dict(
    zip(
        (field.name for field in dataclasses.fields(Weights)),
        ("#1f4e79", "#c55a11", "#2e7d32", "#7b1fa2", "#00838f", "#ad1457", "#6d4c41"),
        strict=False,
    )
)
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 800.0, 30.0, 330.0
_WIDTH, _HEIGHT = 900, 370
_MOST_POINTS: Final = 150  # of a term in a stage; more are averaged
_LEAST: Final = 1e-8  # a logarithm needs something above 0
_TICKS: Final = 5  # at least


@dataclasses.dataclass(frozen=True, slots=True)
class _Line:
    step: int
    stage: str
    values: Mapping[str, float]


def losses(run: Path) -> bytes:
    """Every term of the loss against the step, with the stages marked: an SVG.

    Raises:
        UserError: the run has no log, or an empty one.
    """
    path = run / LOG
    if not path.is_file():
        raise UserError(f"no log at {path}")
    lines = list(_read(path.read_text(encoding="utf-8", errors="replace")))
    values = [value for line in lines for value in line.values.values()]
    if not values:
        raise UserError(f"{path}: no losses in it")
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    plane = _Plane(last=lines[-1].step, low=low, high=max(high, low + 1))
    stages = [list(group) for _, group in groupby(lines, key=lambda line: line.stage)]
    parts = [*plane.axes(), *_stages(stages, plane), *_curves(stages, plane), *_legend(lines)]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="13">'
    )
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>', *parts, "</svg>", ""]).encode()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Plane:
    """Steps across, powers of ten upwards."""

    last: int
    low: int
    high: int

    def x(self, step: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * step / self.last

    def y(self, value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (math.log10(value) - self.low) / (self.high - self.low)

    def axes(self) -> Iterator[str]:
        for power in range(self.low, self.high + 1):
            y = self.y(10.0**power)
            yield f'<path d="M{_LEFT:g} {y:.1f}H{_RIGHT:g}" stroke="#ddd"/>'
            yield f'<text x="{_LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
        for step in range(0, self.last + 1, _round_number(self.last / _TICKS)):
            x = self.x(step)
            yield f'<text x="{x:.1f}" y="{_BOTTOM + 20:g}" text-anchor="middle">{step}</text>'
        yield f'<text x="{(_LEFT + _RIGHT) / 2:g}" y="{_BOTTOM + 36:g}" text-anchor="middle">step</text>'


def _round_number(most: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, … that is not above ``most``; at least 1."""
    power: int = 10 ** max(0, math.floor(math.log10(most)))
    return max(factor * power for factor in (1, 2, 5) if factor == 1 or factor * power <= most)


def _read(text: str) -> Iterator[_Line]:
    """What the log says of the terms; a line torn by a crash says nothing. Tightness is negative: its size is shown."""
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            step, stage = int(entry["step"]), str(entry["stage"])
            values = {name: max(abs(float(entry[name])), _LEAST) for name in _COLOURS if name in entry}
        except (ValueError, KeyError, TypeError):
            continue
        if step > 0 and all(map(math.isfinite, values.values())):
            yield _Line(step, stage, values)


def _stages(stages: Sequence[Sequence[_Line]], plane: _Plane) -> Iterator[str]:
    begin = 0
    for stage in stages:
        x = plane.x(begin)
        yield f'<path d="M{x:.1f} {_TOP:g}V{_BOTTOM:g}" stroke="#999" stroke-dasharray="3 3"/>'
        yield f'<text x="{x + 4:.1f}" y="{_TOP - 8:g}" fill="#555">{escape(stage[0].stage)}</text>'
        begin = stage[-1].step


def _curves(stages: Sequence[Sequence[_Line]], plane: _Plane) -> Iterator[str]:
    for name, colour in _COLOURS.items():
        for stage in stages:
            points = _thinned([(line.step, line.values[name]) for line in stage if name in line.values])
            if points:
                path = " ".join(f"{plane.x(step):.1f},{plane.y(value):.1f}" for step, value in points)
                yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Averages of neighbours, so many that no more than the most are left."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = (points[i : i + size] for i in range(0, len(points), size or 1))
    return [(sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]


def _legend(lines: Sequence[_Line]) -> Iterator[str]:
    shown = {name for line in lines for name in line.values}
    for i, name in enumerate(name for name in _COLOURS if name in shown):
        y = _TOP + 14 + 22 * i
        yield f'<path d="M{_RIGHT + 12:g} {y - 4:g}h18" stroke="{_COLOURS[name]}" stroke-width="2"/>'
        yield f'<text x="{_RIGHT + 36:g}" y="{y:g}">{name}</text>'
