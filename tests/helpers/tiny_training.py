"""A small data set, and one tiny model: trained, exported and evaluated once, for all tests that
need one.
"""

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 8
CLASSES = 4
SAMPLES = 60


class TinyModel:
    """All files below ``folder`` that training, export and evaluation of `tiny` write. Tests copy
    what they change.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_file = folder / "patterns.npz"  # 240 + 80 labelled images
        self.run = folder / "runs" / "tiny"  # of a finished training
        self.models = folder / "models"  # a model directory with `tiny/1` in fp32, not evaluated
        self.models_fp16 = folder / "models_fp16"  # the same with `model.fp16.onnx`
        # of `models_fp16`, evaluated with `SAMPLES` samples
        self.evaluated = folder / "evaluated" / "tiny" / "1"
        self.cache = folder / "cache"  # of the trained classifiers; it may be written to

    @property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json` of `evaluated`."""
        return json.loads((self.evaluated / "metrics.json").read_text())


def tiny_model(folder: Path) -> TinyModel:
    """The tiny model in this folder. The first process that asks makes it; the others wait."""
    tiny = TinyModel(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".done").exists():
            _make(tiny)
            (folder / ".done").touch()
    return tiny


def _make(tiny: TinyModel) -> None:
    # torch is imported here, because the other helpers of this module are used without it.
    from model_export.cli import main
    from model_export.evaluation.evaluate import evaluate
    from model_export.export.export import export

    (x, y), (x_test, y_test) = patterns(240, 1), patterns(80, 2)
    np.savez(tiny.data_file, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    assert main(train_arguments(tiny.data_file, tiny.run)) == 0
    export(tiny.run, tiny.models_fp16, version=1, fp16=True, threads=1)
    shutil.copytree(tiny.models_fp16, tiny.models, ignore=shutil.ignore_patterns("model.fp16.onnx"))
    shutil.copytree(tiny.models_fp16, tiny.evaluated.parents[1])
    evaluate(
        tiny.evaluated, str(tiny.data_file), cache=tiny.cache, samples=SAMPLES, steps=10, threads=1
    )


def patterns(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Light strokes of four classes on dark 8×8 pictures, in a few positions each; pictures and
    labels.
    """
    generator = np.random.default_rng(seed)
    pictures = np.zeros((count, SIZE, SIZE), np.uint8)
    labels = generator.integers(CLASSES, size=count)
    for picture, label in zip(pictures, labels, strict=True):
        light = generator.integers(150, 256)
        (a, b) = generator.integers(1, 6, size=2)
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
    return [
        "train",
        "--preset",
        "tiny",
        "--data",
        str(data),
        "--out",
        str(run),
        "--precision",
        "fp32",
        *more,
    ]
