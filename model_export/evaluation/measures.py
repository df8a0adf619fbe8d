"""The measures of a model, and what decides on them.

The measured function is the exported file, run by onnxruntime. Pictures are rounded to 8 bits, as
they are served.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_export.data.corruptions import corruptions_for, hole_mask
from model_export.data.datasets import Dataset
from model_export.errors import UserError
from model_export.evaluation import projection
from model_export.evaluation.classifier import (
    Classifier,
    Predictions,
    Table,
    sample_budget,
    targets,
)
from model_export.evaluation.exactness import measure_exactness
from model_export.evaluation.metrics import (
    Function,
    Values,
    frechet,
    mean_distance,
    nearest,
    powers,
)
from model_export.evaluation.remarks import remarks
from model_export.export.artifact import TrainedCard
from service.artifact.card import QUANTILES
from service.artifact.pixels import MID_GREY, Levels, ring_mean, to_levels, to_rows
from service.domain.latents import FloatRows, NoiseSource

# Pictures of 28×28 for each of the two starts. One core computes about 7700 of their applications
# of f per second, so 2 · 1000 · 100 applications take 26 seconds; fewer if pictures come to rest.
_LONG_RUN_PICTURES: Final = 100
_LONG_RUN_LEAST: Final = 32  # pictures of any size: a share of fewer says little
SAMPLES: Final = 3000
STEPS: Final = 1000
_SEED: Final = 0
_POWERS: Final = ("f", "f2", "f3")
# Larger pictures cost more. By the cost of its parts, an evaluation of 64×64 RGB within these
# bounds takes about 280 s of CPU time. They do not reach MNIST.
_REAL_PICTURES: Final = 10_000  # of 28×28, held out, whose restoration is measured
# pixels compared in the search for the nearest training pictures
_NEAREST_VALUES: Final = 3000 * 60_000 * 784
_MIN_QUERIES: Final = 100
_RARE: Final = 1.0  # per cent


@dataclass(eq=False)
class Evaluation:
    """Measures one function against one data set."""

    f: Function
    card: TrainedCard
    noise: NoiseSource
    data: Dataset
    classifier: Classifier
    samples: int
    steps: int

    def __post_init__(self) -> None:
        data = self.data
        self._n = min(self.samples, len(data.train))
        self._train = data.train.numpy()
        self._held_out = self.classifier.predict(data.held_out.numpy())
        measured = random_indices(
            len(data.held_out), sample_budget(_REAL_PICTURES, self.card.shape)
        )
        self._real = self._held_out.levels[measured]
        truth = targets(data)[2]  # what the classifier shall read
        self._truth = None if truth is None else truth.numpy()[measured]
        # of the classifier, on clean pictures; None without classes and attributes
        self._accuracy = None if truth is None else (self._held_out.values == truth.numpy()).mean()
        # As many training pictures as samples: their Fréchet distance is the floor that a perfect
        # model would reach.
        self._floor = self.classifier.predict(random_subset(self._train, self._n))

    def run(self) -> Table:
        """All measures, by chapter."""
        # More steps of an exact model are no news.
        chain = self._of_latents(1 if self.card.exact else len(_POWERS))
        named = zip(_POWERS, chain[1:], strict=False)
        samples = {name: self._read(rows) for name, rows in named}
        neighbours = self._nearest(samples["f"])
        table: Table = {
            "data": {
                "held_out": len(self.data.held_out),
                "measured": len(self._real),
            },
            # What decides on the figures; docs/method.md says what they mean.
            "protocol": {
                "samples": self._n,
                "steps": self.steps,
                "seed": _SEED,
                "classifier": {"task": self.classifier.task, "accuracy": self._accuracy},
            },
            "generation": self._generation(samples),
            **({} if self.card.exact else {"drift": _drift(chain)}),
            "nearest": neighbours,
            **_ratio(
                "diversity",
                *(neighbours["other_sample"][part]["median"] for part in ("samples", "real")),
            ),
            **self._real_pictures(chain),
            **self._stability(chain[0]),
            "restoration": self._restoration(),
            "drawings": projection.measure_drawings(
                self.f, self.card, self.classifier, self._real, self._train
            ),
        }
        warnings = [text for warns, text in remarks(table) if warns]
        # Plain JSON values, with floats of six decimals.
        text = json.dumps({"warnings": warnings, **table})
        return json.loads(text, parse_float=lambda number: round(float(number), 6))

    def _of_latents(self, count: int) -> list[FloatRows]:
        """The latents z, f(z), f(f(z)), …: count + 1 arrays (N, C, H, W)."""
        chain = powers(self.f, self.noise.rows(_SEED, 0, self._n), count)
        if not all(np.isfinite(rows).all() for rows in chain):
            raise UserError(f"{self.card.ref}: f(z) has values that are no numbers")
        return chain

    def _read(self, rows: FloatRows) -> Predictions:
        return self.classifier.predict(to_levels(rows))

    def _generation(self, samples: Mapping[str, Predictions]) -> Table:
        after_f = self._read(self.f(to_rows(self._floor.levels)))
        sets = {**samples, "training": self._floor, "training_after_f": after_f}
        distances = {
            name: frechet(predictions.features, self._held_out.features)
            for name, predictions in sets.items()
        }
        return {
            name: {
                "frechet": distances[name],
                **_ratio("multiple", distances[name], distances["training"]),
                **self.classifier.coverage(predictions),
            }
            for name, predictions in sets.items()
        }

    def _nearest(self, samples: Predictions) -> Table:
        """Whether samples are copies of one another or of training pictures more often than real
        pictures are.
        """
        real = self._floor.levels
        queries = min(self._n, max(_NEAREST_VALUES // self._train.size, _MIN_QUERIES))
        few = samples.levels[:queries]
        held_out = random_subset(self._held_out.levels, queries)
        return {
            "other_sample": _compare_distances(
                nearest(samples.levels, samples.levels), nearest(real, real)
            ),
            "training_picture": _compare_distances(
                nearest(few, self._train), nearest(held_out, self._train)
            ),
        }

    def _real_pictures(self, chain: list[FloatRows]) -> Table:
        """How much f changes real pictures, also in proportion to the change of its own outputs."""
        x = to_rows(self._real)
        once = self.f(x)
        again = chain[min(2, len(chain) - 1)]  # of an exact f, f(f(z)) = f(z)
        idempotence = float(np.square(again.astype(np.float64) - chain[1]).mean())
        reconstruction = float(np.square(once.astype(np.float64) - x).mean())
        # The card's quantiles are for `/score`, so pictures are prepared as the service prepares
        # them.
        prepared, inverted = _prepare_as_service(self._real, self.card)
        distance = mean_distance(self.f(prepared) if inverted else once, prepared)
        return {
            **_ratio("health", idempotence, reconstruction),
            "clean": self._compare(once),
            "distance": {"n": len(x), "mean": distance.mean(), "inverted": inverted},
            "distance_quantiles": np.quantile(distance, np.linspace(0.0, 1.0, QUANTILES)).tolist(),
        }

    def _restoration(self) -> Table:
        """How well f restores corrupted pictures, compared with the corrupted input."""
        x = to_rows(self._real)
        f = self.f
        table: Table = {}
        for name, corrupt in corruptions_for(x.shape[1]).items():
            corrupted = corrupt(x)
            rows = {"input": corrupted, "f": f(corrupted)}
            table[name] = {key: self._compare(row) for key, row in rows.items()}
            if name == "hole_0.4":
                mask = hole_mask(x.shape)
                y = corrupted
                for _ in range(4):
                    # The pixels outside the mask are put back, as `/project` does.
                    y = np.where(mask, f(y), corrupted)
                table[name]["with_mask"] = {"f4": self._compare(y)}
        return table

    def _compare(self, rows: FloatRows) -> Table:
        """Measures of what f makes of the real pictures, or of corrupted ones."""
        return self.classifier.compare(rows, to_rows(self._real), self._truth)

    def _stability(self, latents: FloatRows) -> Table:
        if not self.card.exact:
            return {"repeated_application": self._repeated_application(latents)}
        side = self.card.training.config["network"]["blocks"]
        exactness = measure_exactness(self.f, latents, to_rows(self._real), side=side)
        return {"exact": exactness}

    def _repeated_application(self, latents: FloatRows) -> Table:
        n = max(_LONG_RUN_LEAST, sample_budget(_LONG_RUN_PICTURES, self.card.shape))
        n = min(n, len(latents), len(self._real))
        starts = {"samples": latents[:n], "pictures": to_rows(self._real[:n])}
        return {"n": n, **{name: self._long_run(rows) for name, rows in starts.items()}}

    def _long_run(self, rows: FloatRows) -> Table:
        """The measures of f^k(rows) for each k up to the steps of the evaluation."""
        task = self.classifier.task
        counts = [k for k in (1, 10, 100, 1000) if k <= self.steps]
        first = None
        table: Table = {}
        for k, (y, after) in zip(counts, apply_repeatedly(self.f, rows, counts), strict=True):
            predictions = self._read(y)
            first = first or predictions
            row = table["f" if k == 1 else f"f{k}"] = {
                "at_rest": (after == y).all((1, 2, 3)).mean()
            }
            if task != "rotation":
                kept = "same_class" if task == "classes" else "same_attributes"
                row[kept] = (predictions.values == first.values).mean()
        return table


def apply_repeatedly(
    f: Function, rows: FloatRows, counts: Sequence[int]
) -> Iterator[tuple[FloatRows, FloatRows]]:
    """Yield f^k(rows) and f^(k+1)(rows) for each k of ``counts``, in ascending order, k ≥ 1.

    A row with f(y) = y in every bit stays equal for ever, so f is not applied to it again.
    """
    y = f(rows)
    after = f(y)
    moving = np.arange(len(y))
    k = 1
    for count in counts:
        while k < count:
            moving = moving[(after[moving] != y[moving]).any((1, 2, 3))]
            y = after
            after = after.copy()
            if len(moving):
                after[moving] = f(y[moving])
            k = k + 1 if len(moving) else count
        yield y, after


def random_subset(levels: Levels, n: int) -> Levels:
    """Choose n pictures at random with a fixed seed; all if there are at most n."""
    return levels[random_indices(len(levels), n)]


def random_indices(count: int, n: int) -> slice | NDArray[np.int64]:
    """Choose n of ``count`` indices at random with a fixed seed, in ascending order; all if there
    are at most n.
    """
    if n >= count:
        return slice(None)
    return np.sort(np.random.default_rng(_SEED).choice(count, n, replace=False))


def _prepare_as_service(levels: Levels, card: TrainedCard) -> tuple[FloatRows, int]:
    """Pictures as the service passes them to f (light-on-dark: light borders are inverted), and the
    number inverted.
    """
    light = np.zeros(len(levels), dtype=np.bool_)
    if card.polarity == "light-on-dark":
        light = np.array([ring_mean(picture.transpose(1, 2, 0)) > MID_GREY for picture in levels])
    return to_rows(np.where(light[:, None, None, None], 255 - levels, levels)), int(light.sum())


def _compare_distances(samples: Values, real: Values) -> Table:
    """Medians of both, and the share of samples below the rare quantile of the real ones."""
    return {
        "samples": {"n": len(samples), "median": np.median(samples)},
        "real": {"n": len(real), "median": np.median(real)},
        "rare": (samples < np.percentile(real, _RARE)).mean(),
    }


def _drift(chain: list[FloatRows]) -> Table:
    """Mean |f(y) − y| for each y of f(z), f²(z) and so on."""
    steps = zip(_POWERS, pairwise(chain[1:]), strict=False)
    return {name: mean_distance(after, before).mean() for name, (before, after) in steps}


def _ratio(name: str, value: float, unit: float) -> Table:
    """value/unit under this name; empty if the unit is 0."""
    return {name: value / unit} if unit > 0.0 else {}
