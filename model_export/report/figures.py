"""Figures of an exported model: grids of pictures that onnxruntime computes.

Nothing is selected by hand: latents are the first of a seed, pictures the first held-out ones.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torchvision.utils import make_grid

from model_export.data.corruptions import corruptions_for
from model_export.data.datasets import Dataset, load_data_of
from model_export.data.drawings import held_out_drawings, on_background
from model_export.errors import UserError
from model_export.evaluation.metrics import powers
from model_export.export.artifact import Artifact
from model_export.files import write_file
from service.artifact.pixels import to_levels, to_rows
from service.domain.latents import FloatRows, path_rows

_COLUMNS: Final = 12
_LINES: Final = 8

FIGURES: Final[Mapping[str, str]] = {
    "pages": "Damaged blocks of text; background division; f.",
    "samples": "f(z) for the first latents of a seed; none is left out.",
    "generation": "Noise z, and f applied up to three times.",
    "noise_0.8": "Pictures x; x with strong noise, σ = 0.8; f once and twice.",
    "grey": "x; g(x), the mean of the channels; f once and twice.",
    "sketch_3.5": "x; its sketch, g(x + 1) divided by its blur; f once and twice.",
    "interpolation": "Spherical interpolation between two latents in each row.",
    "drawings": "Drawings that are no pictures, and f once and twice: it should make pictures.",
}
"""Figure → what its rows show, in the order of a page."""


def file_name(figure: str, channels: int) -> str:
    """The file of a figure: grey pictures are PNG; colours and pages WebP, which is smaller."""
    return f"{figure}.{'png' if channels == 1 and figure != 'pages' else 'webp'}"


def draw_figures(
    folder: Path,
    source: str,
    out: Path,
    *,
    skip_bad: bool,
    seed: int,
    threads: int,
) -> list[Path]:
    """Draw every figure of the model in ``out``; each file is written as soon as it is drawn."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: expected 0 to {2**32 - 1}")
    artifact = Artifact.read(folder, threads=threads)
    data = load_data_of(artifact.card, source, skip_bad=skip_bad)
    written = []
    for figure, lines in figures(artifact, data, seed):
        written.append(out / file_name(figure, artifact.card.shape[0]))
        write_file(written[-1], _encoded(lines))
    return written


def figures(
    artifact: Artifact, data: Dataset, seed: int
) -> Iterator[tuple[str, Sequence[FloatRows]]]:
    """Keys of `FIGURES`, each with its lines of pictures (N, C, H, W); N is the same in all."""
    card = artifact.card
    f = artifact.function
    channels, side, _ = card.shape
    latents = artifact.noise.rows(seed, 0, _LINES * _COLUMNS)
    x = to_rows(data.held_out[:_COLUMNS].numpy())

    yield "samples", np.split(f(latents), _LINES)
    yield "generation", powers(f, latents[:_COLUMNS], 3)
    for name, corrupt in corruptions_for(channels).items():
        if name in FIGURES:
            yield name, [x, *powers(f, corrupt(x), 2)]
    pairs = latents[: 2 * _LINES].reshape(_LINES, 2, *card.shape)
    yield "interpolation", [f(path_rows(pair, _COLUMNS - 1)) for pair in pairs]
    if channels == 1:
        drawn = held_out_drawings(_COLUMNS, side, faces=False)
        drawings = [on_background(ink, channels, card.background) for ink in drawn.values()]
        yield "drawings", [line for rows in drawings for line in powers(f, rows, 2)]


def _encoded(lines: Sequence[FloatRows]) -> bytes:
    """Lines of pictures as one image without metadata: PNG if they are grey, else WebP.

    A pixel is enlarged: three times up to 42×42, twice up to 64×64.
    """
    levels = torch.from_numpy(to_levels(np.concatenate(lines)))
    _, channels, side, _ = levels.shape
    scale = max(1, min(3, 128 // side))
    large = levels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    # It repeats grey pictures to three channels.
    grid = make_grid(large, nrow=len(lines[0]), padding=2, pad_value=255).numpy()
    buffer = io.BytesIO()
    if channels == 1:
        Image.fromarray(grid[0]).save(buffer, "PNG", optimize=True)
    else:
        Image.fromarray(grid.transpose(1, 2, 0)).save(buffer, "WEBP", quality=80, method=6)
    return buffer.getvalue()
