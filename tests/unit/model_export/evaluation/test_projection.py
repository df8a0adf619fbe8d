from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.data.datasets import Dataset
from model_export.evaluation.classifier import classifier_for
from model_export.evaluation.projection import measure_drawings
from model_export.export.artifact import Artifact
from service.artifact.pixels import to_rows
from service.domain.latents import FloatRows


def projected(pictures: FloatRows) -> Any:
    """The ideal: the nearest of these pictures."""

    def f(x: FloatRows) -> FloatRows:
        squared = np.square(
            pictures.reshape(len(pictures), -1)[None] - x.reshape(len(x), 1, -1)
        ).sum(2)
        y: FloatRows = pictures[squared.argmin(1)]
        return y

    return f


def test_a_projector_is_told_from_a_copy_and_from_a_stamp(
    models: Path, data: Dataset, cache: Path
) -> None:
    classifier = classifier_for(data, cache)
    real = data.held_out.numpy()
    train = data.train.numpy()
    card = Artifact.read(models / "tiny" / "1").card
    held_out = classifier.predict(real)
    pictures = to_rows(np.concatenate([train, real]))

    functions = projected(pictures), lambda x: x, lambda x: np.repeat(pictures[:1], len(x), 0)
    tables = [measure_drawings(f, card, classifier, held_out, real, train) for f in functions]
    for kind in ("letters", "shapes"):
        check_drawings(*(table[kind] for table in tables))


def check_drawings(ideal: dict[str, Any], copy: dict[str, Any], stamp: dict[str, Any]) -> None:
    assert (ideal["auroc"], copy["auroc"]) == (1.0, 0.5)
    assert ideal["sure"]["f"] > copy["sure"]["f"] == copy["sure"]["u"]
    assert (
        copy["frechet"]["f"]
        == copy["frechet"]["u"]
        != ideal["frechet"]["f"]
        == ideal["frechet"]["f3"]
    )
    assert ideal["distance"]["f"] == pytest.approx(ideal["distance"]["nearest"], rel=0.2)
    assert (copy["distance"]["f"], copy["drift"], ideal["drift"]) == (0.0, 0.0, 0.0)
    # a stamp makes sure pictures, but not of what was drawn
    assert ideal["own"] > 0.5 > stamp["own"] == 0.0
    assert ideal["effective_classes"]["f"] > stamp["effective_classes"]["f"] == pytest.approx(1.0)
