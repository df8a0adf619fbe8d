import dataclasses
from typing import Any

import numpy as np
import pytest

from model_export.evaluation.classifier import ClassifierEvaluator, Predictions
from model_export.evaluation.measures import apply_repeatedly, budget, repeated_application
from model_export.evaluation.warnings import warnings
from service.artifact.pixels import Levels, to_rows
from service.domain.latents import FloatRows

COUNTS = (1, 10, 100)


def rows(*values: float) -> FloatRows:
    """Constant 8×8 pictures."""
    return np.array(values, np.float32)[:, None, None, None] * np.ones((1, 1, 8, 8), np.float32)


class Brightness:
    """A classifier that tells light pictures from dark ones."""

    def predict(self, levels: Levels) -> Predictions:
        x = to_rows(levels)
        mean = x.mean((1, 2, 3)).astype(np.float64)
        light = (mean > 0).astype(np.float64)
        features = np.stack([mean, x.std((1, 2, 3))], 1)
        probabilities = np.stack([1 - light, light], 1)
        return Predictions(levels=levels, features=features, probabilities=probabilities, heads=(2,))


def figures(f: Any, steps: int = 100, *, classes: bool = True) -> dict[str, Any]:
    evaluator = ClassifierEvaluator(Brightness(), classes=classes)  # type: ignore[arg-type]
    starts = {"samples": rows(-2.0, -0.3, 0.4, 3.0), "pictures": rows(-0.8, -0.5, 0.5, 0.8)}
    reference = np.array([[-0.5, 0.0], [0.5, 0.0], [0.7, 0.0]])
    return repeated_application(f, starts, evaluator=evaluator, reference=reference, classes=classes, steps=steps)


def test_each_result_comes_with_one_further_application() -> None:
    calls: list[int] = []

    def f(x: FloatRows) -> FloatRows:
        calls.append(len(x))
        return x + np.float32(1.0)

    results = list(apply_repeatedly(f, rows(0.0, 1.0), COUNTS))
    assert [(float(y[0, 0, 0, 0]), float(after[1, 0, 0, 0])) for y, after in results] == [(1, 3), (10, 12), (100, 102)]
    assert calls == [2] * 101


def test_f_is_not_applied_again_to_rows_at_rest() -> None:
    calls: list[int] = []

    def f(x: FloatRows) -> FloatRows:
        calls.append(len(x))
        return np.where(x < 5, x + np.float32(1.0), x).astype(np.float32)

    results = list(apply_repeatedly(f, rows(1.0, 4.0, 7.0), COUNTS))
    for y, after in results[1:]:
        assert y[:, 0, 0, 0].tolist() == after[:, 0, 0, 0].tolist() == [5.0, 5.0, 7.0]
    assert sum(calls) < 15
    assert len(calls) < 9


def test_the_outputs_of_an_idempotent_f_are_at_rest() -> None:
    table = figures(lambda x: np.clip(x, -1, 1))
    assert table["n"] == 4
    for start in ("samples", "pictures"):
        assert list(table[start]) == ["f", "f10", "f100"]
        last = table[start]["f100"]
        assert (last["drift"], last["at_rest"], last["same_class"]) == (0.0, 1.0, 1.0)
        assert last["frechet"] == table[start]["f"]["frechet"]


def test_an_f_that_darkens_pictures_changes_their_class() -> None:
    table = figures(lambda x: np.maximum(x - np.float32(0.05), -1.0).astype(np.float32))
    first, last = table["pictures"]["f"], table["pictures"]["f100"]
    assert first["drift"] == pytest.approx(0.05)
    assert (first["same_class"], last["same_class"]) == (1.0, 0.5)
    assert (first["at_rest"], last["at_rest"]) == (0.0, 1.0)
    assert last["frechet"] > first["frechet"]


def test_the_largest_number_of_applications_is_a_parameter() -> None:
    assert list(figures(lambda x: x, steps=10)["samples"]) == ["f", "f10"]


def test_without_classes_none_is_compared() -> None:
    assert figures(lambda x: x, classes=False)["pictures"]["f"].keys() == {"frechet", "drift", "at_rest"}


def test_larger_pictures_are_fewer() -> None:
    assert budget((1, 28, 28)) > budget((3, 64, 64)) >= 2


@pytest.mark.parametrize(("share", "expected"), [(0.95, 0), (0.7, 1)])
def test_classes_that_change_give_a_warning(share: float, expected: int) -> None:
    kept = {"f": {"same_class": 1.0}, "f1000": {"same_class": 1.0}}
    table = {
        "generation": {"f": {}, "training": {}},
        "nearest": {"other_sample": {"rare": 0.0}, "training_picture": {"rare": 0.0}},
        "drift": {"f": 0.0},
        "clean": {"ssim": 1.0},
        "repeated_application": {
            "n": 5,
            "samples": {**kept, "f1000": {"same_class": share}},
            "pictures": kept,
            "restored": {"f": {"drift": 0.0}},
        },
    }
    lines = warnings(table)
    assert len(lines) == expected
    assert all("f applied 1000 times dissolves samples: 70.0%" in line for line in lines)


class BrightnessAndContrast(Brightness):
    """A classifier of two attributes."""

    def predict(self, levels: Levels) -> Predictions:
        light = super().predict(levels)
        flat = (light.features[:, 1:] < 0.1).astype(np.float64)
        probabilities = np.concatenate([light.probabilities, flat, 1 - flat], 1)
        return dataclasses.replace(light, probabilities=probabilities, heads=(2, 2))


def test_kept_attributes_are_counted_where_there_are_no_classes() -> None:
    evaluator = ClassifierEvaluator(BrightnessAndContrast(), classes=False)  # type: ignore[arg-type]
    reference = np.array([[-0.5, 0.0], [0.5, 0.0], [0.7, 0.0]])
    starts = {"samples": rows(-0.8, -0.5, 0.5, 0.8)}
    table = repeated_application(
        lambda x: -x, starts, evaluator=evaluator, reference=reference, classes=False, steps=10
    )["samples"]
    assert table["f"]["same_attributes"] == 1.0
    assert table["f10"]["same_attributes"] == 0.5  # dark is light now; all are as flat as before
    assert "same_class" not in table["f"]
