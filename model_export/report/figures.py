"""The figures of the IGN paper, drawn from an exported model with onnxruntime, and the losses of
its training.

Nothing is selected by hand: latents are the first of a seed, pictures the first held-out ones of
every class. torchvision lays out the grids, Pillow adds the text, matplotlib plots the losses.
"""

import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import chain, groupby
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import make_grid
from tqdm import tqdm

from model_export.data import corruptions
from model_export.data.corruptions import Corruption
from model_export.data.datasets import Dataset, load_data_of
from model_export.data.drawings import held_out_drawings, on_background
from model_export.errors import UserError
from model_export.evaluation.measures import apply_repeatedly
from model_export.export.artifact import Artifact, TrainedCard
from model_export.export.verify import check_run
from model_export.files import atomic_write
from model_export.training.checkpoint import FILE, load
from model_export.training.stages import Weights
from model_export.training.train import LOG
from service.artifact.pixels import to_levels, to_rows
from service.domain import latents
from service.domain.latents import FloatRows

_COLUMNS: Final = 12
_REPEATED_COLUMNS: Final = 8  # fewer, because the time of this figure is steps × columns
_LINES: Final = 8

LOSSES: Final = "losses"
FIGURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "pages": "Damaged blocks of text; background division; f.",
        "samples": "f(z) for the first latents of a seed; none is left out.",
        "generation": "Noise z, and f applied up to three times.",
        "clean": "Held-out pictures: f should not change them.",
        "noise_0.15": "Weak noise, σ = 0.15.",
        "noise_0.8": "Strong noise, σ = 0.8.",
        "blur": "Gaussian blur, σ = 1.5.",
        "thinned": "Thinned strokes (grey erosion).",
        "grey": "Grey pictures g(x): the mean of the channels.",
        "sketch": "Sketches s(x): g(x + 1) divided by its blur.",
        "low_resolution": "A quarter of the resolution.",
        "hole": "A grey hole of 0.4 of the side.",
        "interpolation": "Spherical interpolation between latents.",
        "arithmetic": "Sums of latents.",
        "drawings": "Drawings that are no pictures: f should make pictures of them.",
        "repeated": "f applied k times to the same noise.",
        LOSSES: "Terms of the training loss, unweighted.",
    }
)
"""Figure → what it shows, in the order of a page."""


def file_name(figure: str, channels: int) -> str:
    """The file of a figure: losses are SVG, pictures grey PNG or, of colours and pages, WebP, which
    is smaller.
    """
    kind = "svg" if figure == LOSSES else "png" if channels == 1 and figure != "pages" else "webp"
    return f"{figure}.{kind}"


_LINE: Final = 22  # height of a line of text
_MARGIN: Final = 8
_GAP: Final = 2  # between pictures


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageGrid:
    """A grid of pictures with labels. Labels are ASCII: Pillow's built-in font has few other
    characters.
    """

    caption: str  # line above the grid
    # Label and pictures (N, C, H, W) in [−1, 1] of every row; N is the same in all rows.
    rows: Sequence[tuple[str, FloatRows]]
    columns: Sequence[str] = ()  # labels above the columns, or none

    @property
    def scale(self) -> int:
        """Enlargement of a pixel: 3 up to 42×42, 2 up to 64×64, else 1."""
        return max(1, min(3, 128 // self._shape[1]))

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Position of a picture in the image: left, top, right, bottom, in pixels."""
        (left, top), (_, height, width) = self._origin, (side * self.scale for side in self._shape)
        left = left + _GAP + column * (width + _GAP)
        top = top + _GAP + row * (height + _GAP)
        return left, top, left + width, top + height

    def encode(self, form: Literal["PNG", "WEBP"]) -> bytes:
        """The grid as PNG, grey or RGB, without metadata; or as WebP, whose losses are hard to
        see.
        """
        options = {"optimize": True} if form == "PNG" else {"quality": 80, "method": 6}
        buffer = io.BytesIO()
        self._image().save(buffer, form, **options)
        return buffer.getvalue()

    def _image(self) -> Image.Image:
        grid = Image.fromarray(self._grid())
        (left, top), font = self._origin, _font()
        width = max(left + grid.width, _MARGIN + _text_width(self.caption)) + _MARGIN
        image = Image.new(grid.mode, (width, top + grid.height + _MARGIN), "white")
        image.paste(grid, (left, top))
        draw = ImageDraw.Draw(image)
        draw.text((_MARGIN, _MARGIN // 2), self.caption, fill="black", font=font)
        for column, label in enumerate(self.columns):
            draw.text((self.box(0, column)[0], top - _LINE + 2), label, fill="black", font=font)
        for row, (label, _) in enumerate(self.rows):
            _, upper, _, lower = self.box(row, 0)
            draw.text((_MARGIN, (upper + lower) // 2), label, fill="black", font=font, anchor="lm")
        return image

    def _grid(self) -> NDArray[np.uint8]:
        """All pictures, enlarged without smoothing: (H, W) or (H, W, 3) uint8."""
        levels = torch.from_numpy(
            to_levels(np.concatenate([pictures for _, pictures in self.rows]))
        )
        large = levels.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        # make_grid repeats grey pictures to three channels.
        grid = make_grid(large, nrow=len(self.rows[0][1]), padding=_GAP, pad_value=255).numpy()
        return grid[0] if self._shape[0] == 1 else np.ascontiguousarray(grid.transpose(1, 2, 0))

    @property
    def _shape(self) -> tuple[int, int, int]:
        channels, height, width = self.rows[0][1].shape[1:]
        return channels, height, width

    @property
    def _origin(self) -> tuple[int, int]:
        """Left and top of the grid, beside the labels."""
        left = 2 * _MARGIN + max(_text_width(label) for label, _ in self.rows)
        return left, _MARGIN + _LINE * (2 if self.columns else 1)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(15)


def _text_width(text: str) -> int:
    return round(_font().getlength(text))


class RestorationFigure(NamedTuple):
    """A figure of a corruption and its restoration."""

    figure: str  # key of `FIGURES`
    name: str
    term: str  # the corrupted picture as a formula
    corrupt: Corruption


def restoration_figures(card: TrainedCard) -> list[RestorationFigure]:
    """The corruptions that are shown for a model: thin strokes for grey models, grey and sketch for
    colour models.
    """
    thinned = corruptions.thin(light=card.polarity != "dark-on-light")
    figures = [
        RestorationFigure("noise_0.15", "noise, sigma 0.15", "x + n", corruptions.noise(0.15)),
        RestorationFigure("noise_0.8", "noise, sigma 0.8", "x + n", corruptions.noise(0.8)),
        RestorationFigure("blur", "blur", "b(x)", corruptions.blur(1.5)),
        RestorationFigure(
            "low_resolution", "low resolution", "d(x)", corruptions.low_resolution(4)
        ),
        RestorationFigure("hole", "hole", "m(x)", corruptions.hole(0.4)),
    ]
    if card.shape[0] == 1:
        return [*figures, RestorationFigure("thinned", "thinned strokes", "e(x)", thinned)]
    grey = RestorationFigure("grey", "grey", "g(x)", corruptions.grey())
    return [*figures, grey, RestorationFigure("sketch", "sketch", "s(x)", corruptions.sketch(3.5))]


def draw_figures(
    folder: Path,
    source: str,
    out: Path,
    *,
    skip_bad: bool = False,
    steps: int = 300_000,
    seed: int = 0,
    run: Path | None = None,
    threads: int = 0,
) -> list[Path]:
    """Draw every figure of the model in ``out``, and the losses of its run if that is given.

    Each file is written as soon as it is drawn; `repeated`, which may take minutes, comes last.
    """
    if steps < 1:
        raise UserError(f"--steps {steps}: at least 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: expected 0 to {2**32 - 1}")
    artifact = Artifact.read(folder, threads=threads)
    card = artifact.card
    data = load_data_of(card, source, skip_bad=skip_bad)
    losses = None if run is None else plot_losses(run)
    if run is not None:
        check_run(card, run, load(run / FILE))
    context = FigureContext(artifact, data, seed=seed)
    form: Literal["PNG", "WEBP"] = "PNG" if card.shape[0] == 1 else "WEBP"
    drawn = ((figure, draw().encode(form)) for figure, draw in context.figures(steps))
    written = []
    for figure, content in chain([] if losses is None else [(LOSSES, losses)], drawn):
        written.append(out / file_name(figure, card.shape[0]))
        with atomic_write(written[-1]) as file:
            file.write(content)
    return written


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class FigureContext:
    """The model and the data from which the figures are drawn, with one method for each figure."""

    artifact: Artifact
    data: Dataset
    seed: int = 0

    def figures(self, steps: int) -> Iterator[tuple[str, Callable[[], ImageGrid]]]:
        """Keys of `FIGURES`, but for `losses`, and their grids; ``steps`` is for `repeated`."""
        yield "samples", self.samples
        yield "generation", self.generation
        yield "clean", self.clean
        for figure in restoration_figures(self.artifact.card):
            yield figure.figure, partial(self.restoration, figure)
        yield "interpolation", self.interpolation
        yield "arithmetic", self.arithmetic
        yield "drawings", self.drawings
        if not self.artifact.card.exact:
            yield "repeated", partial(self.repeated, steps)

    def samples(self) -> ImageGrid:
        """f(z) for 8 × 12 latents, row-major."""
        y = self.artifact.function(self._latents(_LINES * _COLUMNS))
        lines = [
            (f"z {i}-{i + _COLUMNS - 1}", y[i : i + _COLUMNS]) for i in range(0, len(y), _COLUMNS)
        ]
        return self._grid(f"f(z), seed {self.seed}", lines)

    def generation(self) -> ImageGrid:
        """Z, f(z), f(f(z)), f(f(f(z)))."""
        return self._grid(
            f"from noise, seed {self.seed}", self._chain("z", self._latents(_COLUMNS), 3)
        )

    def clean(self) -> ImageGrid:
        """x, f(x), f(f(x))."""
        return self._grid("held-out pictures", self._chain("x", self._pictures(), 2))

    def restoration(self, figure: RestorationFigure) -> ImageGrid:
        """x, c(x), f(c(x)), f(f(c(x))) with c the corruption."""
        x = self._pictures()
        return self._grid(figure.name, [("x", x), *self._chain(figure.term, figure.corrupt(x), 2)])

    def interpolation(self) -> ImageGrid:
        """Eight great arcs, each from latent 2i to latent 2i + 1, under f."""
        path = latents.LatentPath(frames=11)
        z = self._latents(2 * _LINES)
        lines = [
            (f"z {i}-{i + 1}", self.artifact.function(path.rows([z[i], z[i + 1]])))
            for i in range(0, len(z), 2)
        ]
        times = [f"t = {t:.1f}" for t in path.times()]
        return self._grid(f"from one latent to another, seed {self.seed}", lines, times)

    def arithmetic(self) -> ImageGrid:
        """Latents a, b, c and their sums, under f; column i has latents i, 12 + i and 24 + i."""
        a, b, c = np.split(self._latents(3 * _COLUMNS), 3)
        sums: dict[str, FloatRows] = {"f(a)": a, "f(b)": b, "f(c)": c}
        sums["f(a + b)"] = self._sum([a, b], [1.0, 1.0])
        sums["f(a + b + c)"] = self._sum([a, b, c], [1.0, 1.0, 1.0])
        sums["f(a - b + c)"] = self._sum([a, b, c], [1.0, -1.0, 1.0])
        lines = [(label, self.artifact.function(rows)) for label, rows in sums.items()]
        return self._grid(f"sums of latents, seed {self.seed}", lines)

    def drawings(self) -> ImageGrid:
        """u, f(u), f(f(u)) for letters, shapes, and in colour for faces."""
        card = self.artifact.card
        lines = []
        for ink in held_out_drawings(_COLUMNS, card.shape[1], faces=card.shape[0] == 3).values():
            lines += self._chain("u", on_background(ink, card.shape[0], card.background), 2)
        return self._grid("drawings", lines)

    def repeated(self, steps: int) -> ImageGrid:
        """f^k(z) for the recorded k up to ``steps``, and for ``steps``. A progress bar shows the
        remaining time.
        """
        z = self._latents(_REPEATED_COLUMNS)
        counts = sorted(
            {k for k in (1, 10, 20, 100, 1000, 10_000, 100_000, 300_000) if k < steps} | {steps}
        )
        lines = [("k = 0", z)]
        with tqdm(total=steps, desc="f^k(z)", unit="step", mininterval=1.0) as bar:

            def f(x: FloatRows) -> FloatRows:
                bar.update()
                return self.artifact.function.run_batch(x)

            for k, (y, _) in zip(counts, apply_repeatedly(f, z, counts), strict=True):
                lines.append((f"k = {k:,}".replace(",", " "), y))
        return self._grid(f"f applied k times to z, seed {self.seed}", lines)

    def _chain(self, label: str, x: FloatRows, steps: int) -> list[tuple[str, FloatRows]]:
        lines = [(label, x)]
        for _ in range(steps):
            label = f"f({label})"
            x = self.artifact.function(x)
            lines.append((label, x))
        return lines

    def _sum(self, terms: list[FloatRows], weights: list[float]) -> FloatRows:
        norm = self.artifact.card.noise.norm if self.artifact.card.noise else None
        return np.stack(
            [latents.weighted_sum(rows, weights, norm) for rows in zip(*terms, strict=True)]
        )

    def _latents(self, n: int) -> FloatRows:
        return self.artifact.noise.rows(self.seed, 0, n)

    def _pictures(self) -> FloatRows:
        labels = self.data.held_out_labels
        index = first_of_classes(
            None if labels is None else labels.numpy(), len(self.data.held_out), _COLUMNS
        )
        return to_rows(self.data.held_out[index].numpy())

    def _grid(
        self, what: str, rows: list[tuple[str, FloatRows]], columns: Sequence[str] = ()
    ) -> ImageGrid:
        return ImageGrid(caption=f"{self.artifact.card.ref}: {what}", rows=rows, columns=columns)


def first_of_classes(labels: NDArray[np.int64] | None, count: int, n: int) -> NDArray[np.int64]:
    """Indices of at most n pictures: the first of every class, then the second, …; without labels
    the first n.
    """
    if labels is None:
        return np.arange(min(n, count))
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(count) - np.repeat(starts, sizes)  # within its class
    return order[np.argsort(rank, kind="stable")][:n]


_TERMS: Final = tuple(field.name for field in dataclasses.fields(Weights))
# one for each term; matplotlib has ten
_COLOURS: Final = (
    *(f"C{i}" for i in range(10)),
    *("black", "gold", "navy", "teal", "hotpink", "lime", "tan", "indigo", "salmon", "coral"),
)
_MAX_POINTS: Final = 150  # of a curve in a stage; more are averaged
_MIN_VALUE: Final = 1e-8  # the logarithmic scale needs values above 0


class _Entry(NamedTuple):
    """One line of the log."""

    step: int
    stage: str
    terms: Mapping[str, float]  # of the loss, absolute values


def plot_losses(run: Path) -> bytes:
    """Plot every term of the loss, unweighted, against the step; vertical lines mark the stages."""
    path = run / LOG
    if not path.is_file():
        raise UserError(f"no log at {path}")
    entries = list(_read(path.read_text(encoding="utf-8", errors="replace")))
    if not any(entry.terms for entry in entries):
        raise UserError(f"{path}: no losses in it")
    # Text stays text instead of outlines, and ids are the same in every run: equal logs give equal
    # files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "model_export", "font.size": 9}):
        figure = Figure(figsize=(9, 3.7), layout="constrained")
        axes = figure.add_subplot(yscale="log", xlabel="step", xmargin=0)
        axes.grid(axis="y", color="#ddd")
        start = entries[0].step
        for stage, group in groupby(entries, key=lambda entry: entry.stage):
            lines = list(group)
            axes.axvline(start, color="#999", linestyle=":")
            # The name stands above the axes: x in data units, y in units of the axes.
            axes.text(start, 1.02, stage, transform=axes.get_xaxis_transform(), color="#555")
            for term, colour in zip(_TERMS, _COLOURS, strict=True):
                points = _average(
                    [(line.step, line.terms[term]) for line in lines if term in line.terms]
                )
                if points:
                    marker = "." if len(points) == 1 else ""  # a line needs two points
                    axes.plot(
                        *zip(*points, strict=True),
                        color=colour,
                        linewidth=1.2,
                        marker=marker,
                        label=term,
                    )
            start = lines[-1].step
        # A term that occurs in several stages has several curves: one legend entry each.
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axes.legend(
            unique.values(),
            unique.keys(),
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            frameon=False,
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _read(text: str) -> Iterator[_Entry]:
    """The entries of a log, without lines that a crash has cut."""
    for line in text.splitlines():
        try:
            values = json.loads(line)
            step = int(values["step"])
            stage = str(values["stage"])
            # Tightness is negative.
            terms = {
                name: max(abs(float(values[name])), _MIN_VALUE) for name in _TERMS if name in values
            }
        except (ValueError, KeyError, TypeError):
            continue
        if step > 0 and all(map(math.isfinite, terms.values())):
            yield _Entry(step, stage, terms)


def _average(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Means of neighbours, so that at most `_MAX_POINTS` remain."""
    size = math.ceil(len(points) / _MAX_POINTS)
    groups = (points[i : i + size] for i in range(0, len(points), size or 1))
    return [
        (sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group))
        for group in groups
    ]
