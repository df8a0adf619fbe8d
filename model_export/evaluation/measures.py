"""The protocol by which a model is measured; what it says of itself goes into the result, beside the figures.

What is measured is the file that is served, through onnxruntime, on pictures as they are served: rounded to 8 bits.
"""

from collections.abc import Mapping
from importlib.metadata import version
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_export.data.datasets import Dataset
from model_export.data.pixels import Levels, to_levels, to_rows
from model_export.errors import UserError
from model_export.evaluation import restoration
from model_export.evaluation.classifier import FEATURES, Classifier
from model_export.evaluation.inception import Inception
from model_export.evaluation.judge import Function, Judge, Judged, Table, affordable
from model_export.evaluation.metrics import frechet, mean_distance, nearest
from model_export.evaluation.warnings import warnings
from service.artifact.card import QUANTILES, ModelCard
from service.domain.latents import FloatRows, NoiseSource

SAMPLES: Final = 3000
STEPS: Final = 1000
_SEED: Final = 0
_POWERS: Final = ("f", "f2", "f3", "f4")
_SHOWN: Final = 3  # of them, in a full evaluation
_BRIEF: Final = ("noise_0.8",)  # degradations that tell most about a run
_REPEATED: Final = (1, 4, 10, 100, 1000, 10_000, 100_000)
_REPEATED_SAMPLES: Final = 256  # of 28×28
_RARE: Final = 1.0  # per cent
_PRECISION: Final = (
    "on the CPU: frechet of f(z); difference: |f(z) - f(z) in fp32| of all pixels; golden: largest difference from the "
    "golden rows of training, and what it may be"
)
_ALONE: Final[Mapping[str, Function]] = MappingProxyType({})


class Evaluation:
    """One function measured against one data set.

    Args:
        f: what is measured.
        card: of it.
        noise: its latents.
        data: what it was trained on, with the held-out pictures.
        classifier: the judge.
        samples: pictures to generate; no more than there are training pictures.
        steps: how often f is repeated at most.
        variants: the same network in other precisions, by name.
        inception: measures FID as well.
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
        steps: int = STEPS,
        variants: Mapping[str, Function] = _ALONE,
        inception: Inception | None = None,
    ) -> None:
        self._f, self._card, self._noise, self._data, self._classifier = f, card, noise, data, classifier
        self._steps, self._variants, self._inception = steps, variants, inception
        self._n = min(samples, len(data.train))
        labels = data.held_out_labels
        self._labels = None if labels is None or classifier.task != "classes" else labels.numpy()
        self._judge = Judge(classifier, classes=self._labels is not None)
        self._train = data.train.numpy()
        self._held_out = self._judge.look(data.held_out.numpy())
        self._floor = self._judge.look(_some(self._train, self._n))

    def run(self) -> Table:
        """Every measure, by chapter.

        Raises:
            UserError: f gives values that are no numbers.
        """
        chain = self._chain(_SHOWN)
        samples = [self._judge.look(to_levels(rows)) for rows in chain[1:]]
        closest = self._nearest(samples[0])
        table: Table = {
            "data": {
                "name": self._data.name,
                "sha256": self._data.sha256,
                "train": len(self._train),
                "held_out": len(self._data.held_out),
            },
            "protocol": self._protocol(),
            "generation": self._generation(samples),
            **self._fid(samples),
            "drift": _drift(chain),
            "nearest": closest,
            **_diversity(closest["other_sample"]),
            **self._real(chain),
            "repeated": self._repeated(chain[1]),
            "restoration": self._restoration().run(),
            **self._precision(chain),
        }
        found: Table = _rounded({"warnings": warnings(table), **table})
        return found

    def brief(self) -> Table:
        """What tells runs apart, in a tenth of the time: generation up to f⁴, drift, clean and noisy pictures.

        Raises:
            UserError: f gives values that are no numbers.
        """
        chain = self._chain(len(_POWERS))
        samples = [self._judge.look(to_levels(rows)) for rows in chain[1:]]
        table = {"generation": self._generation(samples), "drift": _drift(chain), "clean": self._real(chain)["clean"]}
        found: Table = _rounded({**table, "restoration": self._restoration().alone(_BRIEF)})
        return found

    def _chain(self, powers: int) -> list[FloatRows]:
        """The latents, and f of them applied so many times, one after the other."""
        chain = [self._noise.rows(_SEED, 0, self._n)]
        for _ in range(powers):
            chain.append(self._f(chain[-1]))
        if not all(np.isfinite(rows).all() for rows in chain):
            raise UserError(f"{self._card.ref}: f(z) has values that are no numbers")
        return chain

    def _restoration(self) -> restoration.Restoration:
        return restoration.Restoration(
            self._f, judge=self._judge, held_out=self._held_out.levels, labels=self._labels, train=self._train
        )

    def _protocol(self) -> Table:
        judge, n = self._classifier, self._n
        return {
            "samples": n,
            "seed": _SEED,
            "pictures": "as served: clipped and rounded to 8 bits; latents, drift, health and repeated are not",
            "frechet": "samples against all held-out pictures; training: as many training pictures against the same, "
            "the floor; multiple: of that floor",
            "features": f"{FEATURES} penultimate features of a convolutional classifier of "
            + ("the data's classes" if judge.task == "classes" else "four rotations; the data have no classes"),
            "classifier": {"accuracy": judge.accuracy, "source": judge.source},
            "kl": "predicted classes from uniform, in nats",
            "drift": "mean |f(y) - y|, y = f(z), f2(z)",
            "nearest": "root mean square over pixels, range -1 to 1; real: as many training pictures among themselves, "
            "held-out pictures to the training pictures; rare: share of samples nearer than 1 % of the real ones",
            "diversity": "median distance of f(z) to the nearest other one, over that of training pictures: 1 = as "
            "far apart as real pictures, 0 = all alike",
            "health": "mean square of f(f(z)) - f(z) over that of f(x) - x, x held-out pictures",
            "repeated": f"the first {self._repeated_samples} of the samples: y = f applied k times, drift: mean "
            "|f(y) - y|, moved: mean |y - f(z)|",
            "restoration": restoration.PROTOCOL,
            **({"inception": self._inception_protocol(self._inception)} if self._inception else {}),
            **({"precision": _PRECISION} if self._variants else {}),
            "provider": f"onnxruntime {version('onnxruntime')}, CPU",
        }

    @staticmethod
    def _inception_protocol(inception: Inception) -> str:
        return (
            f"FID: Fréchet distance as above on the 2048 features of Inception v3, torch-fidelity {inception.version}, "
            f"weights of SHA-256 {inception.source}"
        )

    @property
    def _repeated_samples(self) -> int:
        return min(self._n, affordable(_REPEATED_SAMPLES, self._card.shape))

    def _generation(self, samples: list[Judged]) -> Table:
        reference = self._held_out.reading
        floor = frechet(self._floor.reading.features, reference.features)
        table: Table = {}
        for name, judged in self._named(samples):
            distance = frechet(judged.reading.features, reference.features)
            table[name] = {"frechet": distance, **_over("multiple", distance, floor)}
            table[name] |= self._judge.cover(judged.reading)
        if self._labels is not None:
            table["held_out"] = self._judge.cover(reference)
        return table

    def _fid(self, samples: list[Judged]) -> Table:
        if self._inception is None:
            return {}
        reference = self._inception.read(self._held_out.levels)
        read = {name: self._inception.read(each.levels) for name, each in self._named(samples)}
        return {"inception": {name: frechet(features, reference) for name, features in read.items()}}

    def _named(self, samples: list[Judged]) -> list[tuple[str, Judged]]:
        """f(z), f²(z), … and what they are compared with."""
        return [*zip(_POWERS, samples, strict=False), ("training", self._floor)]

    def _nearest(self, samples: Judged) -> Table:
        """Are samples copies of one another, or of training pictures, more often than real pictures are?"""
        real, held_out = self._floor.levels, _some(self._held_out.levels, self._n)
        return {
            "other_sample": _compared(nearest(samples.levels, samples.levels), nearest(real, real)),
            "training_picture": _compared(nearest(samples.levels, self._train), nearest(held_out, self._train)),
        }

    def _real(self, chain: list[FloatRows]) -> Table:
        """What f does to real pictures, and to its own beside it."""
        x = to_rows(self._held_out.levels)
        kept = self._f(x)
        idempotence = float(np.square(chain[2].astype(np.float64) - chain[1]).mean())
        reconstruction = float(np.square(kept.astype(np.float64) - x).mean())
        prepared, inverted = _prepared(self._held_out.levels, self._card)
        distance = mean_distance(self._f(prepared) if inverted else kept, prepared)
        return {
            **_over("health", idempotence, reconstruction),
            "clean": self._judge.restored(kept, x, self._labels),
            "distance": {"n": len(x), "mean": distance.mean(), "inverted": inverted},
            "distance_quantiles": np.quantile(distance, np.linspace(0.0, 1.0, QUANTILES)).tolist(),
        }

    def _repeated(self, first: FloatRows) -> Table:
        """Where f leads when it is applied again and again."""
        first = first[: self._repeated_samples]
        marks = [k for k in _REPEATED if k <= self._steps]
        table: Table = {"n": len(first)}
        rows = first
        for k in range(1, marks[-1] + 1):
            after = self._f(rows)
            if k in marks:
                seen = self._judge.look(to_levels(rows)).reading
                table["f" if k == 1 else f"f{k}"] = {
                    "drift": mean_distance(after, rows).mean(),
                    "moved": mean_distance(rows, first).mean(),
                    **self._judge.cover(seen),
                }
            rows = after
        return table

    def _precision(self, chain: list[FloatRows]) -> Table:
        """The other precisions beside fp32."""
        table: Table = {}
        for name, f in self._variants.items():
            rows = f(chain[0])
            features = self._judge.look(to_levels(rows)).reading.features
            difference = np.abs(rows.astype(np.float64) - chain[1])
            table[name] = {
                "frechet": frechet(features, self._held_out.reading.features),
                "difference": {"mean": difference.mean(), "largest": difference.max()},
            }
        return {"precision": table} if table else {}


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


def _drift(chain: list[FloatRows]) -> Table:
    """How far one more step leads, from f(z) on."""
    steps = zip(_POWERS, pairwise(chain[1:]), strict=False)
    return {name: mean_distance(after, before).mean() for name, (before, after) in steps}


def _diversity(compared: Table) -> Table:
    return _over("diversity", compared["samples"]["median"], compared["real"]["median"])


def _over(name: str, value: float, unit: float) -> Table:
    """The quotient under this name; nothing where it has no value."""
    return {name: value / unit} if unit > 0.0 else {}


def _rounded(value: Any) -> Any:
    """Plain JSON values; floats to six decimals."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(float(value), 6) if isinstance(value, float) else value
