"""What a classifier sees in pictures as they are served, and how near they are to the ones wanted."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_export.data.pixels import Levels, to_levels, to_rows
from model_export.evaluation.classifier import Classifier, Reading
from model_export.evaluation.metrics import kl_to_uniform, psnr, ssim
from service.domain.latents import FloatRows

Function = Callable[[FloatRows], FloatRows]
Table = dict[str, Any]

_PIXELS: Final = 784  # of the picture that the numbers of slow measures are stated for
_LEAST: Final = 16  # of those: what larger pictures are measured with at least, as a fraction


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Pictures as they are served, and what the classifier sees in them."""

    levels: Levels
    reading: Reading


class Judge:
    """Looks at pictures with a classifier.

    Args:
        classifier: does the looking.
        classes: whether what it tells apart are the classes of the data.
    """

    def __init__(self, classifier: Classifier, *, classes: bool) -> None:
        self._classifier, self._classes = classifier, classes

    def look(self, levels: Levels) -> Judged:
        """Pictures with what is seen in them."""
        return Judged(levels, self._classifier.read(to_rows(levels)))

    def cover(self, reading: Reading) -> Table:
        """How evenly and how surely the classes appear; nothing where there are none."""
        if not self._classes:
            return {}
        counts = np.bincount(reading.classes, minlength=reading.probabilities.shape[1])
        return {"kl": kl_to_uniform(counts), "confidence": reading.confidence, "classes": counts.tolist()}

    def restored(self, rows: FloatRows, x: FloatRows, labels: NDArray[np.int64] | None) -> Table:
        """PSNR and SSIM of pictures against the clean ``x``, and how many are read as labelled."""
        judged = self.look(to_levels(rows))
        served = to_rows(judged.levels)
        table: Table = {"psnr": psnr(served, x).mean(), "ssim": ssim(served, x).mean()}
        return table if labels is None or not self._classes else {**table, "accuracy": judged.reading.accuracy(labels)}


def affordable(pictures: int, shape: tuple[int, ...]) -> int:
    """How many pictures of this shape cost a slow measure what ``pictures`` of 28×28 do; a sixteenth at least."""
    return max(pictures // _LEAST, min(pictures, pictures * _PIXELS // prod(shape)))
