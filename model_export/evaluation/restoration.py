"""How well f restores corrupted pictures, compared with the corrupted input."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model_export.data.corruptions import Corruption, corruptions_for, hole_mask
from model_export.evaluation.classifier import Classifier, Table
from service.artifact.pixels import Levels, to_rows
from service.domain.latents import FloatRows

Function = Callable[[FloatRows], FloatRows]


def measure_restoration(
    f: Function, classifier: Classifier, held_out: Levels, truth: NDArray[np.int64] | None
) -> Table:
    """Measures by corruption and by way of restoration; see `Classifier.compare` for ``truth``."""
    x = to_rows(held_out)

    def compare(rows: FloatRows) -> Table:
        return classifier.compare(rows, x, truth)

    def measure(name: str, corrupt: Corruption) -> Table:
        corrupted = corrupt(x)
        once = f(corrupted)
        table = {"input": compare(corrupted), "f": compare(once), "f2": compare(f(once))}
        if name == "hole_0.4":
            # After every step the pixels outside the mask are put back, as `/project` does.
            mask = hole_mask(x.shape)
            rows = corrupted
            masked = [rows := np.where(mask, f(rows), corrupted) for _ in range(4)]
            table["with_mask"] = {"f": compare(masked[0]), "f4": compare(masked[-1])}
        return table

    corruptions = corruptions_for(x.shape[1])
    return {name: measure(name, corrupt) for name, corrupt in corruptions.items()}
