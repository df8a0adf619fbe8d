"""Small things that stand for the large: patterns for digits, the tiny preset for a long training."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIZE = 8
CLASSES = 4


def patterns(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Light strokes of four kinds on dark 8×8 pictures, each in one of a few places; pictures and labels."""
    generator = np.random.default_rng(seed)
    pictures, labels = np.zeros((count, SIZE, SIZE), np.uint8), generator.integers(CLASSES, size=count)
    for picture, label in zip(pictures, labels, strict=True):
        light, (a, b) = generator.integers(150, 256), generator.integers(1, 6, size=2)
        if label == 0:
            picture[a : a + 2] = light
        elif label == 1:
            picture[:, b : b + 2] = light
        elif label == 2:
            picture[a : a + 2, b : b + 2] = light
        else:
            np.fill_diagonal(picture, light)
            picture[a] = light // 2
    return pictures, labels.astype(np.uint8)


def train_arguments(data: Path, run: Path, *more: str) -> list[str]:
    return ["train", "--preset", "tiny", "--data", str(data), "--out", str(run), "--precision", "fp32", *more]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
