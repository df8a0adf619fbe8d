"""How well f restores corrupted pictures, compared with the corrupted input and with classical methods."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_export.data.corruptions import COLOUR_CORRUPTIONS, CORRUPTIONS, Corruption, hole_mask
from model_export.evaluation.baselines import BASELINES, Methods, tune
from model_export.evaluation.classifier import ClassifierEvaluator, Table, sample_budget
from service.artifact.pixels import Levels, to_rows
from service.domain.latents import FloatRows

Function = Callable[[FloatRows], FloatRows]

BASELINE_PICTURES: Final = 1000  # held-out pictures of 28×28: classical methods take up to 5 ms for one
TUNING_PICTURES: Final = 64  # training pictures of 28×28 on which the parameters of a method are chosen
_HOLES: Final = {"hole_0.4": 0.4}
_MASKED_STEPS: Final = (("f", 1), ("f4", 4))

PROTOCOL: Final = (
    "the pictures of `real`; PSNR and SSIM (Gaussian window) against the clean picture; with_mask: kept pixels are put "
    "back after every step; baselines: the first n of them, f and the degraded picture (input) on the same; "
    "methods know the noise's σ, the blur's kernel, the hole's place; their settings are the best of a grid by PSNR on "
    "training pictures"
)


class Restoration:
    """Measures f and the baselines on every corruption.

    Args:
        held_out: clean pictures (N, C, H, W).
        labels: their classes (N,) or attributes (N, K), or None.
    """

    def __init__(
        self,
        f: Function,
        *,
        evaluator: ClassifierEvaluator,
        held_out: Levels,
        labels: NDArray[np.int64] | None,
        train: Levels,
    ) -> None:
        shape = held_out.shape[1:]
        self._f, self._evaluator, self._labels = f, evaluator, labels
        self._x = to_rows(held_out)
        self._n_baseline = sample_budget(BASELINE_PICTURES, shape)
        self._tuning = to_rows(train[: sample_budget(TUNING_PICTURES, shape)])

    def run(self) -> Table:
        """Measures of f and of the baselines, by corruption and by way of restoration."""
        corruptions = {**CORRUPTIONS, **(COLOUR_CORRUPTIONS if self._x.shape[1] == 3 else {})}
        return {name: self._measure(name, corrupt) for name, corrupt in corruptions.items()}

    def run_without_baselines(self, names: Sequence[str]) -> Table:
        """Measures of f for some corruptions."""
        return {name: self._measure_f(name, CORRUPTIONS[name](self._x))[0] for name in names}

    def _measure(self, name: str, corrupt: Corruption) -> Table:
        corrupted = corrupt(self._x)
        table, once = self._measure_f(name, corrupted)
        if name not in BASELINES:
            return table
        n = self._n_baseline
        table["baselines"] = self._measure_baselines(BASELINES[name], corrupt, corrupted[:n], once[:n])
        return table

    def _measure_f(self, name: str, corrupted: FloatRows) -> tuple[Table, FloatRows]:
        """Measures of f, and f(corrupted)."""
        once = self._f(corrupted)
        table = {"input": self._compare(corrupted), "f": self._compare(once), "f2": self._compare(self._f(once))}
        if name in _HOLES:
            mask = hole_mask(_HOLES[name], corrupted.shape)
            table["with_mask"] = {
                key: self._compare(self._masked(corrupted, mask, steps)) for key, steps in _MASKED_STEPS
            }
        return table, once

    def _measure_baselines(self, methods: Methods, corrupt: Corruption, corrupted: FloatRows, once: FloatRows) -> Table:
        table: Table = {"n": len(corrupted), "input": self._compare(corrupted), "f": self._compare(once)}
        for name, grid in methods.items():
            point = tune(grid, corrupt(self._tuning), self._tuning)
            table[name] = self._compare(point.restore(corrupted))
            if point.text:
                table[name]["setting"] = point.text
        return table

    def _masked(self, corrupted: FloatRows, mask: NDArray[np.bool_], steps: int) -> FloatRows:
        """Apply f ``steps`` times; after every step the pixels outside the mask are put back, as `/project` does."""
        rows = corrupted
        for _ in range(steps):
            rows = np.where(mask, self._f(rows), corrupted)
        return rows

    def _compare(self, rows: FloatRows) -> Table:
        """Measures of rows against the first clean pictures."""
        labels = None if self._labels is None else self._labels[: len(rows)]
        return self._evaluator.restoration(rows, self._x[: len(rows)], labels)
