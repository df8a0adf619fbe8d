"""The protocol by which a model is measured; what it says of itself goes into the result, beside the figures.

What is measured is the file that is served, through onnxruntime, on pictures as they are served: rounded to 8 bits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_export.classifier import FEATURES, Classifier, Reading
from model_export.data import Dataset
from model_export.degradations import DEGRADATIONS, Degradation
from model_export.metrics import (
    Levels,
    frechet,
    kl_to_uniform,
    mean_distance,
    nearest,
    psnr,
    ssim,
    to_levels,
    to_rows,
)
from service.card import QUANTILES, ModelCard
from service.domain.latents import FloatRows, NoiseSource

Function = Callable[[FloatRows], FloatRows]
Table = dict[str, Any]

SAMPLES: Final = 3000
_SEED: Final = 0
_POWERS: Final = ("f", "f2", "f3")
_RARE: Final = 1.0  # per cent


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """Pictures as they are served, and what the classifier sees in them."""

    levels: Levels
    reading: Reading


class Evaluation:
    """One function measured against one data set.

    Args:
        f: what is measured.
        card: of it.
        noise: its latents.
        data: what it was trained on, with the held-out pictures.
        classifier: the judge.
        samples: pictures to generate; no more than there are training pictures.
    """

    def __init__(
        self,
        f: Function,
        *,
        card: ModelCard,
        noise: NoiseSource,
        data: Dataset,
        classifier: Classifier,
        samples: int = SAMPLES,
    ) -> None:
        self._f, self._card, self._noise, self._data, self._classifier = f, card, noise, data, classifier
        self._n = min(samples, len(data.train))
        self._train = data.train.numpy()
        self._held_out = self._judged(data.held_out.numpy())
        self._floor = self._judged(_some(self._train, self._n))
        labels = data.held_out_labels
        self._labels = None if labels is None or classifier.task != "classes" else labels.numpy()

    def run(self) -> Table:
        """Every measure, by chapter."""
        chain = [self._noise.rows(_SEED, 0, self._n)]
        for _ in _POWERS:
            chain.append(self._f(chain[-1]))
        samples = [self._judged(to_levels(rows)) for rows in chain[1:]]
        drift = [mean_distance(after, before).mean() for before, after in pairwise(chain[1:])]
        table: Table = _rounded(
            {
                "data": {
                    "name": self._data.name,
                    "sha256": self._data.sha256,
                    "train": len(self._train),
                    "held_out": len(self._data.held_out),
                },
                "protocol": self._protocol(),
                "generation": self._generation(samples),
                "drift": dict(zip(_POWERS, drift, strict=False)),
                "nearest": self._nearest(samples[0]),
                **self._real(),
                "restoration": self._restoration(DEGRADATIONS, {"f": self._f, "f2": lambda x: self._f(self._f(x))}),
            }
        )
        return table

    def _protocol(self) -> Table:
        judge = self._classifier
        return {
            "samples": self._n,
            "seed": _SEED,
            "pictures": "as served: clipped and rounded to 8 bits; latents and drift are not",
            "frechet": "samples against all held-out pictures; training: as many training pictures against the same",
            "features": f"{FEATURES} penultimate features of a convolutional classifier of "
            + ("the data's classes" if judge.task == "classes" else "four rotations; the data have no classes"),
            "classifier": {"accuracy": judge.accuracy, "source": judge.source},
            "kl": "predicted classes from uniform, in nats",
            "drift": "mean |f(y) - y|, y = f(z), f2(z)",
            "nearest": "root mean square over pixels, range -1 to 1; real: as many training pictures among themselves, "
            "held-out pictures to the training pictures; rare: share of samples nearer than 1 % of the real ones",
            "restoration": "all held-out pictures; PSNR and SSIM (Gaussian window) against the clean picture",
            "provider": f"onnxruntime {version('onnxruntime')}, CPU",
        }

    def _generation(self, samples: list[_Judged]) -> Table:
        reference = self._held_out.reading
        table: Table = {}
        for name, judged in zip((*_POWERS, "training"), (*samples, self._floor), strict=True):
            table[name] = {
                "frechet": frechet(judged.reading.features, reference.features),
                **self._cover(judged.reading),
            }
        if self._labels is not None:
            table["held_out"] = self._cover(reference)
        return table

    def _cover(self, reading: Reading) -> Table:
        """How evenly and how surely the classes appear; nothing where there are none."""
        if self._labels is None:
            return {}
        counts = np.bincount(reading.classes, minlength=reading.probabilities.shape[1])
        return {"kl": kl_to_uniform(counts), "confidence": reading.confidence, "classes": counts.tolist()}

    def _nearest(self, samples: _Judged) -> Table:
        """Are samples copies of one another, or of training pictures, more often than real pictures are?"""
        real, held_out = self._floor.levels, _some(self._held_out.levels, self._n)
        return {
            "other_sample": _compared(nearest(samples.levels, samples.levels), nearest(real, real)),
            "training_picture": _compared(nearest(samples.levels, self._train), nearest(held_out, self._train)),
        }

    def _real(self) -> Table:
        """What f does to real pictures."""
        x = to_rows(self._held_out.levels)
        prepared, inverted = _prepared(self._held_out.levels, self._card)
        distance = mean_distance(self._f(prepared), prepared)
        return {
            "clean": self._restored(self._f(x), x),
            "distance": {"n": len(x), "mean": distance.mean(), "inverted": inverted},
            "distance_quantiles": np.quantile(distance, np.linspace(0.0, 1.0, QUANTILES)).tolist(),
        }

    def _restoration(self, degradations: Mapping[str, Degradation], restorers: Mapping[str, Function]) -> Table:
        x = to_rows(self._held_out.levels)
        table: Table = {}
        for name, degrade in degradations.items():
            degraded = degrade(x)
            table[name] = {"input": self._restored(degraded, x)}
            table[name] |= {way: self._restored(restore(degraded), x) for way, restore in restorers.items()}
        return table

    def _restored(self, rows: FloatRows, x: FloatRows) -> Table:
        judged = self._judged(to_levels(rows))
        served = to_rows(judged.levels)
        table = {"psnr": psnr(served, x).mean(), "ssim": ssim(served, x).mean()}
        return table if self._labels is None else {**table, "accuracy": judged.reading.accuracy(self._labels)}

    def _judged(self, levels: Levels) -> _Judged:
        return _Judged(levels, self._classifier.read(to_rows(levels)))


def _some(levels: Levels, n: int) -> Levels:
    """N of the pictures at random, always the same; all when there are no more."""
    if n >= len(levels):
        return levels
    return levels[np.sort(np.random.default_rng(_SEED).choice(len(levels), n, replace=False))]


def _prepared(levels: Levels, card: ModelCard) -> tuple[FloatRows, int]:
    """Pictures as the service hands them to f, and how many of them it inverts.

    With a card that says light on dark, it inverts those whose outermost ring of pixels is light.
    """
    light = np.zeros(len(levels), dtype=np.bool_)
    if card.polarity == "light-on-dark":
        ring = np.ones(levels.shape[2:], dtype=np.bool_)
        ring[1:-1, 1:-1] = False
        light = levels[:, :, ring].mean((1, 2)) > 127.5
    return to_rows(np.where(light[:, None, None, None], 255 - levels, levels)), int(light.sum())


def _compared(samples: NDArray[np.float64], real: NDArray[np.float64]) -> Table:
    def figures(values: NDArray[np.float64]) -> Table:
        low, rare, median = np.percentile(values, (0.0, _RARE, 50.0)).tolist()
        return {"n": len(values), "least": low, "percentile_1": rare, "median": median}

    return {
        "samples": figures(samples),
        "real": figures(real),
        "rare": (samples < np.percentile(real, _RARE)).mean(),
    }


def _rounded(value: Any) -> Any:
    """Plain JSON values; floats to six decimals."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(float(value), 6) if isinstance(value, float) else value
