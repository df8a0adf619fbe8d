"""The figures of the paper and the talk, drawn from an exported model as it is served, through onnxruntime.

Nothing is chosen by eye: latents are the first of a seed, pictures the first held-out ones of every class.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.data.datasets import Dataset, load_dataset
from model_export.data.pixels import to_rows
from model_export.errors import UserError
from model_export.export.artifact import Artifact
from model_export.files import atomic
from model_export.report import loss_curves
from model_export.report.image_grid import Sheet
from model_export.report.spoilings import Spoiling, spoilings
from service.domain import interpolation as paths
from service.domain import latents
from service.domain.latents import FloatRows

STEPS: Final = 300_000
_RECORDED: Final = (0, 1, 10, 20, 100, 1000, 10_000, 100_000, 300_000)  # of the talk
_COLUMNS: Final = 12
_LONG_COLUMNS: Final = 8  # of the figure whose time is steps × columns
_FRAMES: Final = 11
_LINES: Final = 8

LOSSES: Final = "losses.svg"
FIGURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "samples.png": "Pictures made from the first latents of a seed, none left out.",
        "generation.png": "Noise z, and what f makes of it when applied once, twice and three times.",
        "clean.png": "Held-out pictures x: a real picture should be left as it is.",
        "noise_0.15.png": "The paper's noise, σ = 0.15: x, x + n, and n projected away once and twice.",
        "noise_0.8.png": "Strong noise, σ = 0.8.",
        "blur.png": "Gaussian blur, σ = 1.5 pixels of a 28-pixel side.",
        "thinned.png": "Thinned strokes (grey erosion).",
        "grey.png": "Grey pictures g(x): the mean of the channels.",
        "sketch.png": "Sketches s(x) of the paper: g(x + 1) divided by its blur.",
        "low_resolution.png": "A quarter of the resolution.",
        "hole.png": "A hole of 0.4 of the side in mid grey.",
        "interpolation.png": "From one latent to another along the great arc (slerp), eight times.",
        "arithmetic.png": "Sums of latents, rescaled to the length of noise.",
        "repeated.png": "f applied k times to the same noise.",
        LOSSES: "Terms of the loss during training, unweighted, on a logarithmic scale.",
    }
)
"""File name → what it shows, in the order of a page."""


def draw(
    folder: Path,
    source: str,
    out: Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    run: Path | None = None,
    threads: int = 0,
) -> list[Path]:
    """Draw every figure that suits the model; each file appears whole as soon as it is drawn, the long one last.

    Args:
        folder: the version folder.
        source: the data it was trained on, as for `load_dataset`.
        out: folder for the figures; others of the same names are replaced.
        steps: applications of f in `repeated.png`, ≥ 1; those of the talk up to this one are shown, and this one.
        seed: of the latents, uint32.
        run: folder of the training run, for its losses; without it there is no such figure.
        threads: CPU threads of onnxruntime; 0 leaves the choice to it.

    Returns:
        The files written.

    Raises:
        UserError: no model there, other data than it was trained on, no log in the run, or a number out of range.
    """
    if steps < 1:
        raise UserError(f"--steps {steps}: at least 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: expected 0 to {2**32 - 1}")
    artifact = Artifact.read(folder, threads=threads)
    card = artifact.card
    data = load_dataset(source, size=card.shape[1], channels=card.shape[0])
    if data.sha256 != card.data.sha256:
        raise UserError(f"--data {data.name}: not what {card.ref} was trained on, {card.data.name} of another SHA-256")
    losses = None if run is None else loss_curves.losses(run)
    drawing = Drawing(artifact, data, seed=seed)
    written = []
    if losses is not None:
        written.append(_write(out / LOSSES, losses))
    for name, sheet in drawing.short():
        written.append(_write(out / name, sheet().png()))
    written.append(_write(out / "repeated.png", drawing.repeated(steps).png()))
    return written


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """What is drawn from, and how each figure is.

    Args:
        artifact: the model.
        data: what it was trained on.
        seed: of the latents.
    """

    artifact: Artifact
    data: Dataset
    seed: int = 0

    def short(self) -> Iterator[tuple[str, Callable[[], Sheet]]]:
        """File name and figure, all but the repeated application."""
        yield "samples.png", self.samples
        yield "generation.png", self.generation
        yield "clean.png", self.clean
        for spoiling in spoilings(self.artifact.card):
            yield spoiling.file, partial(self.restoration, spoiling)
        yield "interpolation.png", self.interpolation
        yield "arithmetic.png", self.arithmetic

    def samples(self) -> Sheet:
        """f(z) for 8 × 12 latents, row-major."""
        y = self._f(self._latents(0, _LINES * _COLUMNS))
        lines = [(f"z {i}-{i + _COLUMNS - 1}", y[i : i + _COLUMNS]) for i in range(0, len(y), _COLUMNS)]
        return self._sheet(f"f(z), seed {self.seed}", lines)

    def generation(self) -> Sheet:
        """Z, f(z), f(f(z)), f(f(f(z)))."""
        return self._sheet(f"from noise, seed {self.seed}", self._chain("z", self._latents(0, _COLUMNS), 3))

    def clean(self) -> Sheet:
        """x, f(x), f(f(x))."""
        return self._sheet("held-out pictures", self._chain("x", self._pictures(), 2))

    def restoration(self, spoiling: Spoiling) -> Sheet:
        """x, d(x), f(d(x)), f(f(d(x)))."""
        x = self._pictures()
        return self._sheet(spoiling.name, [("x", x), *self._chain(spoiling.term, spoiling.degrade(x), 2)])

    def interpolation(self) -> Sheet:
        """Eight great arcs, each from latent 2i to latent 2i + 1, put through f."""
        path = paths.LatentPath(frames=_FRAMES)
        z = self._latents(0, 2 * _LINES)
        lines = [(f"z {i}-{i + 1}", self._f(path.rows([z[i], z[i + 1]]))) for i in range(0, len(z), 2)]
        return self._sheet(
            f"from one latent to another, seed {self.seed}", lines, columns=[f"t = {t:.1f}" for t in path.times()]
        )

    def arithmetic(self) -> Sheet:
        """Latents a, b, c and their sums, put through f; column i has latents i, 12 + i and 24 + i."""
        a, b, c = np.split(self._latents(0, 3 * _COLUMNS), 3)
        sums: dict[str, FloatRows] = {"f(a)": a, "f(b)": b, "f(c)": c}
        sums["f(a + b)"] = self._sum([a, b], [1.0, 1.0])
        sums["f(a + b + c)"] = self._sum([a, b, c], [1.0, 1.0, 1.0])
        sums["f(a - b + c)"] = self._sum([a, b, c], [1.0, -1.0, 1.0])
        return self._sheet(
            f"sums of latents, seed {self.seed}", [(label, self._f(rows)) for label, rows in sums.items()]
        )

    def repeated(self, steps: int) -> Sheet:
        """f^k(z) for the k of the talk that are ≤ ``steps``, and for ``steps``; a progress bar tells the time left."""
        x = self._latents(0, _LONG_COLUMNS)
        recorded = {0: x}
        for k in tqdm(range(1, steps + 1), desc="f^k(z)", unit="step", mininterval=1.0):
            x = self.artifact.function.once(x)
            if k in _RECORDED or k == steps:
                recorded[k] = x
        lines = [(f"k = {k:,}".replace(",", " "), rows) for k, rows in recorded.items()]
        return self._sheet(f"f applied k times to z, seed {self.seed}", lines)

    def _chain(self, label: str, x: FloatRows, steps: int) -> list[tuple[str, FloatRows]]:
        """The rows, and what f makes of them once, twice, and so on."""
        lines = [(label, x)]
        for _ in range(steps):
            label, x = f"f({label})", self._f(x)
            lines.append((label, x))
        return lines

    def _sum(self, terms: list[FloatRows], weights: list[float]) -> FloatRows:
        norm = self.artifact.card.noise.norm
        return np.stack([latents.weighted_sum(rows, weights, norm) for rows in zip(*terms, strict=True)])

    def _f(self, rows: FloatRows) -> FloatRows:
        return self.artifact.function(rows)

    def _latents(self, offset: int, n: int) -> FloatRows:
        return self.artifact.noise.rows(self.seed, offset, n)

    def _pictures(self) -> FloatRows:
        labels = self.data.held_out_labels
        first = first_of_classes(None if labels is None else labels.numpy(), len(self.data.held_out), _COLUMNS)
        return to_rows(self.data.held_out[first].numpy())

    def _sheet(self, what: str, rows: list[tuple[str, FloatRows]], columns: list[str] | None = None) -> Sheet:
        return Sheet(caption=f"{self.artifact.card.ref}: {what}", rows=rows, columns=columns or ())


def first_of_classes(labels: NDArray[np.int64] | None, count: int, n: int) -> NDArray[np.int64]:
    """Indices of ``n`` of ``count`` pictures: the first of every class, then the second, …; all, when there are fewer.

    Without classes, the first ``n``.
    """
    if labels is None:
        return np.arange(min(n, count))
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(count) - np.repeat(starts, sizes)  # within its class
    return order[np.argsort(place, kind="stable")][:n]


def _write(path: Path, content: bytes) -> Path:
    with atomic(path) as file:
        file.write(content)
    return path
