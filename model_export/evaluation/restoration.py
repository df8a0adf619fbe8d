"""How well f makes degraded pictures good again, beside doing nothing and beside classical methods."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_export.data.numpy_corruptions import DEGRADATIONS, Degradation, hole_mask
from model_export.data.pixels import Levels, to_rows
from model_export.evaluation.baselines import CLASSICAL, Methods, best
from model_export.evaluation.judge import Function, Judge, Table, affordable
from service.domain.latents import FloatRows

BASELINES: Final = 1000  # held-out pictures of 28×28: classical methods take up to 5 ms for one
_TUNING: Final = 64  # training pictures of 28×28 by which a method's setting is chosen
_HOLES: Final = {"hole_0.4": 0.4}
_MASKED: Final = (("f", 1), ("f4", 4))

PROTOCOL: Final = (
    "all held-out pictures; PSNR and SSIM (Gaussian window) against the clean picture; with_mask: kept pixels are put "
    "back after every step; baselines: the first n held-out pictures, f and the degraded picture (input) on the same; "
    "methods know the noise's σ, the blur's kernel, the hole's place; their settings are the best of a grid by PSNR on "
    "training pictures"
)


class Restoration:
    """Every degradation, undone in every way.

    Args:
        f: what is measured.
        judge: reads what comes out.
        held_out: clean pictures (N, C, H, W).
        labels: of them, or None.
        train: training pictures, by which classical methods are set.
    """

    def __init__(
        self, f: Function, *, judge: Judge, held_out: Levels, labels: NDArray[np.int64] | None, train: Levels
    ) -> None:
        self._f, self._judge, self._labels = f, judge, labels
        self._x = to_rows(held_out)
        shape = held_out.shape[1:]
        self._few = affordable(BASELINES, shape)
        self._tuning = to_rows(train[: affordable(_TUNING, shape)])

    def run(self) -> Table:
        """Measures by degradation and by way."""
        return {name: self._row(name, degrade) for name, degrade in DEGRADATIONS.items()}

    def alone(self, names: Sequence[str]) -> Table:
        """The same for some degradations, without the classical methods."""
        return {name: self._own(name, DEGRADATIONS[name](self._x))[0] for name in names}

    def _row(self, name: str, degrade: Degradation) -> Table:
        degraded = degrade(self._x)
        table, once = self._own(name, degraded)
        table["baselines"] = self._baselines(CLASSICAL[name], degrade, degraded[: self._few], once[: self._few])
        return table

    def _own(self, name: str, degraded: FloatRows) -> tuple[Table, FloatRows]:
        """What f makes of degraded pictures: measures, and the pictures after one step."""
        once = self._f(degraded)
        table = {"input": self._restored(degraded), "f": self._restored(once), "f2": self._restored(self._f(once))}
        if name in _HOLES:
            mask = hole_mask(_HOLES[name], degraded.shape)
            table["with_mask"] = {way: self._restored(self._masked(degraded, mask, k)) for way, k in _MASKED}
        return table, once

    def _baselines(self, methods: Methods, degrade: Degradation, degraded: FloatRows, once: FloatRows) -> Table:
        table: Table = {"n": len(degraded), "input": self._restored(degraded), "f": self._restored(once)}
        for name, settings in methods.items():
            setting = best(settings, degrade(self._tuning), self._tuning)
            table[name] = self._restored(setting.restore(degraded))
            if setting.text:
                table[name]["setting"] = setting.text
        return table

    def _masked(self, degraded: FloatRows, mask: NDArray[np.bool_], steps: int) -> FloatRows:
        """As `/project` does with a mask."""
        rows = degraded
        for _ in range(steps):
            rows = np.where(mask, self._f(rows), degraded)
        return rows

    def _restored(self, rows: FloatRows) -> Table:
        labels = None if self._labels is None else self._labels[: len(rows)]
        return self._judge.restored(rows, self._x[: len(rows)], labels)
