"""The figures of the IGN paper, drawn from an exported model with onnxruntime.

Nothing is selected by hand: latents are the first of a seed, pictures the first held-out ones of every class.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.data import corruptions
from model_export.data.corruptions import Corruption
from model_export.data.datasets import Dataset, load_data_of
from model_export.errors import UserError
from model_export.evaluation.measures import apply_repeatedly
from model_export.export.artifact import Artifact
from model_export.export.verify import check_run
from model_export.files import atomic_write
from model_export.report.image_grid import ImageGrid
from model_export.report.loss_curves import plot_losses
from model_export.training.checkpoint import FILE, load
from service.artifact.card import ModelCard
from service.artifact.pixels import to_rows
from service.domain import latents
from service.domain.latents import FloatRows

STEPS: Final = 300_000
_RECORDED: Final = (1, 10, 20, 100, 1000, 10_000, 100_000, 300_000)
_COLUMNS: Final = 12
_REPEATED_COLUMNS: Final = 8  # fewer, because the time of this figure is steps × columns
_FRAMES: Final = 11
_LINES: Final = 8

LOSSES: Final = "losses"
FIGURES: Final[Mapping[str, str]] = MappingProxyType(
    {
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
        "repeated": "f applied k times to the same noise.",
        LOSSES: "Terms of the training loss, unweighted.",
    }
)
"""Figure → what it shows, in the order of a page."""


def file_name(figure: str, channels: int) -> str:
    """The file of a figure: losses are SVG, pictures grey PNG or WebP in colour, which is a quarter of the size."""
    return f"{figure}.svg" if figure == LOSSES else f"{figure}.png" if channels == 1 else f"{figure}.webp"


class RestorationFigure(NamedTuple):
    """A figure of a corruption and its restoration."""

    figure: str  # key of `FIGURES`
    name: str
    term: str  # the corrupted picture as a formula
    corrupt: Corruption


def restoration_figures(card: ModelCard) -> list[RestorationFigure]:
    """The corruptions that are shown for a model: thin strokes for grey models, grey and sketch for colour models."""
    thinned = corruptions.thin(light=card.polarity != "dark-on-light")
    return [
        RestorationFigure("noise_0.15", "noise, sigma 0.15", "x + n", corruptions.noise(0.15)),
        RestorationFigure("noise_0.8", "noise, sigma 0.8", "x + n", corruptions.noise(0.8)),
        RestorationFigure("blur", "blur", "b(x)", corruptions.blur(1.5)),
        RestorationFigure("low_resolution", "low resolution", "d(x)", corruptions.low_resolution(4)),
        RestorationFigure("hole", "hole", "m(x)", corruptions.hole(0.4)),
        *(
            [RestorationFigure("thinned", "thinned strokes", "e(x)", thinned)]
            if card.shape[0] == 1
            else [
                RestorationFigure("grey", "grey", "g(x)", corruptions.grey()),
                RestorationFigure("sketch", "sketch", "s(x)", corruptions.sketch(3.5)),
            ]
        ),
    ]


def draw_figures(
    folder: Path,
    source: str,
    out: Path,
    *,
    skip_bad: bool = False,
    steps: int = STEPS,
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
    channels = card.shape[0]
    form: Literal["PNG", "WEBP"] = "PNG" if channels == 1 else "WEBP"

    def write(figure: str, content: bytes) -> Path:
        path = out / file_name(figure, channels)
        with atomic_write(path) as file:
            file.write(content)
        return path

    written = [] if losses is None else [write(LOSSES, losses)]
    for figure, draw in context.figures():
        written.append(write(figure, draw().encode(form)))
    written.append(write("repeated", context.repeated(steps).encode(form)))
    return written


@dataclass(frozen=True, slots=True, eq=False)
class FigureContext:
    """The model and the data from which the figures are drawn, with one method for each figure."""

    artifact: Artifact  # the model
    data: Dataset  # what it was trained on
    seed: int = 0

    def figures(self) -> Iterator[tuple[str, Callable[[], ImageGrid]]]:
        """Keys of `FIGURES` and their grids, except `repeated`."""
        yield "samples", self.samples
        yield "generation", self.generation
        yield "clean", self.clean
        for figure in restoration_figures(self.artifact.card):
            yield figure.figure, partial(self.restoration, figure)
        yield "interpolation", self.interpolation
        yield "arithmetic", self.arithmetic

    def samples(self) -> ImageGrid:
        """f(z) for 8 × 12 latents, row-major."""
        y = self.artifact.function(self._latents(_LINES * _COLUMNS))
        lines = [(f"z {i}-{i + _COLUMNS - 1}", y[i : i + _COLUMNS]) for i in range(0, len(y), _COLUMNS)]
        return self._grid(f"f(z), seed {self.seed}", lines)

    def generation(self) -> ImageGrid:
        """Z, f(z), f(f(z)), f(f(f(z)))."""
        return self._grid(f"from noise, seed {self.seed}", self._chain("z", self._latents(_COLUMNS), 3))

    def clean(self) -> ImageGrid:
        """x, f(x), f(f(x))."""
        return self._grid("held-out pictures", self._chain("x", self._pictures(), 2))

    def restoration(self, figure: RestorationFigure) -> ImageGrid:
        """x, c(x), f(c(x)), f(f(c(x))) with c the corruption."""
        x = self._pictures()
        return self._grid(figure.name, [("x", x), *self._chain(figure.term, figure.corrupt(x), 2)])

    def interpolation(self) -> ImageGrid:
        """Eight great arcs, each from latent 2i to latent 2i + 1, under f."""
        path = latents.LatentPath(frames=_FRAMES)
        z = self._latents(2 * _LINES)
        lines = [(f"z {i}-{i + 1}", self.artifact.function(path.rows([z[i], z[i + 1]]))) for i in range(0, len(z), 2)]
        return self._grid(
            f"from one latent to another, seed {self.seed}", lines, columns=[f"t = {t:.1f}" for t in path.times()]
        )

    def arithmetic(self) -> ImageGrid:
        """Latents a, b, c and their sums, under f; column i has latents i, 12 + i and 24 + i."""
        a, b, c = np.split(self._latents(3 * _COLUMNS), 3)
        sums: dict[str, FloatRows] = {"f(a)": a, "f(b)": b, "f(c)": c}
        sums["f(a + b)"] = self._sum([a, b], [1.0, 1.0])
        sums["f(a + b + c)"] = self._sum([a, b, c], [1.0, 1.0, 1.0])
        sums["f(a - b + c)"] = self._sum([a, b, c], [1.0, -1.0, 1.0])
        return self._grid(
            f"sums of latents, seed {self.seed}",
            [(label, self.artifact.function(rows)) for label, rows in sums.items()],
        )

    def repeated(self, steps: int) -> ImageGrid:
        """f^k(z) for the recorded k up to ``steps``, and for ``steps``. A progress bar shows the remaining time."""
        z = self._latents(_REPEATED_COLUMNS)
        counts = sorted({k for k in _RECORDED if k < steps} | {steps})
        lines = [("k = 0", z)]
        with tqdm(total=steps, desc="f^k(z)", unit="step", mininterval=1.0) as bar:

            def f(x: FloatRows) -> FloatRows:
                bar.update()
                return self.artifact.function.run_batch(x)

            for k, (y, _) in zip(counts, apply_repeatedly(f, z, counts), strict=True):
                lines.append((f"k = {k:,}".replace(",", " "), y))
        return self._grid(f"f applied k times to z, seed {self.seed}", lines)

    def _chain(self, label: str, x: FloatRows, steps: int) -> list[tuple[str, FloatRows]]:
        """The rows x, f(x), f(f(x)), … with their labels."""
        lines = [(label, x)]
        for _ in range(steps):
            label, x = f"f({label})", self.artifact.function(x)
            lines.append((label, x))
        return lines

    def _sum(self, terms: list[FloatRows], weights: list[float]) -> FloatRows:
        norm = self.artifact.card.noise.norm
        return np.stack([latents.weighted_sum(rows, weights, norm) for rows in zip(*terms, strict=True)])

    def _latents(self, n: int) -> FloatRows:
        return self.artifact.noise.rows(self.seed, 0, n)

    def _pictures(self) -> FloatRows:
        labels = self.data.held_out_labels
        index = first_of_classes(None if labels is None else labels.numpy(), len(self.data.held_out), _COLUMNS)
        return to_rows(self.data.held_out[index].numpy())

    def _grid(self, what: str, rows: list[tuple[str, FloatRows]], columns: list[str] | None = None) -> ImageGrid:
        return ImageGrid(caption=f"{self.artifact.card.ref}: {what}", rows=rows, columns=columns or ())


def first_of_classes(labels: NDArray[np.int64] | None, count: int, n: int) -> NDArray[np.int64]:
    """Indices of ``n`` of ``count`` pictures: the first of every class, then the second, and so on.

    All indices if there are fewer; the first ``n`` without labels.
    """
    if labels is None:
        return np.arange(min(n, count))
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(count) - np.repeat(starts, sizes)  # within its class
    return order[np.argsort(rank, kind="stable")][:n]
