import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.data.datasets import Dataset
from model_export.errors import UserError
from model_export.evaluation import measures
from model_export.evaluation.classifier import classifier_for
from model_export.evaluation.evaluate import evaluate
from model_export.evaluation.measures import Evaluation, apply_repeatedly, random_subset
from model_export.evaluation.metrics import mean_distance
from model_export.export.artifact import Artifact, TrainedCard, publish
from model_export.report.quality import summary
from service.artifact.files import GOLDEN_FILE, METRICS_FILE, MODEL_FILE, MODEL_FILES
from service.artifact.golden import digest_of
from service.artifact.pixels import to_rows
from service.domain.latents import FloatRows
from tests.helpers.folders import contents
from tests.helpers.tiny_training import CLASSES, SAMPLES, TinyModel, patterns


def measured(
    f: Any,
    artifact: Artifact,
    data: Dataset,
    cache: Path,
    samples: int = 100,
    steps: int = 10,
    **card: object,
) -> dict[str, Any]:
    return Evaluation(
        f,
        card=TrainedCard.model_validate({**artifact.card.model_dump(), **card}),
        noise=artifact.noise,
        data=data,
        classifier=classifier_for(data, cache),
        samples=samples,
        steps=steps,
    ).run()


def test_the_figures_enter_the_card_and_the_model_stays_the_same(tiny: TinyModel) -> None:
    table = tiny.metrics
    evaluated = Artifact.read(tiny.evaluated)
    before = Artifact.read(tiny.models_fp16 / "tiny" / "1")
    digest = digest_of((tiny.evaluated / MODEL_FILE).read_bytes())
    assert table["model"] == {"name": "tiny", "version": "1", "digest": digest}
    assert evaluated.card.distance_quantiles == tuple(table["distance_quantiles"])
    for chapter in ("warnings", "diversity", "health", "drift", "generation"):
        assert evaluated.card.quality[chapter] == table[chapter]
    assert {
        **evaluated.card.model_dump(),
        "quality": {},
        "distance_quantiles": None,
    } == before.card.model_dump()
    rows = before.noise.rows(3, 0, 5)
    assert np.array_equal(evaluated.function(rows), before.function(rows))
    # `golden` checks that they name the new file
    assert np.array_equal(evaluated.golden().y, before.golden().y)
    assert set(contents(tiny.evaluated)) == {*MODEL_FILES.values(), GOLDEN_FILE, METRICS_FILE}


def test_evaluation_is_reproducible(tiny: TinyModel, tmp_path: Path) -> None:
    folder = tmp_path / "1"
    publish(folder, contents(tiny.evaluated))
    table = evaluate(
        folder, str(tiny.data_file), cache=tiny.cache, samples=SAMPLES, steps=10, threads=1
    )
    assert table == tiny.metrics
    assert contents(folder) == contents(tiny.evaluated)


def test_distances_are_those_of_held_out_pictures_in_8_bit(tiny: TinyModel, data: Dataset) -> None:
    x = to_rows(data.held_out.numpy())
    distance = np.sort(mean_distance(Artifact.read(tiny.evaluated).function(x), x))
    quantiles = tiny.metrics["distance_quantiles"]
    assert len(quantiles) == 101
    assert quantiles == sorted(quantiles)
    np.testing.assert_allclose(
        [quantiles[0], quantiles[50], quantiles[-1]],
        [distance[0], np.median(distance), distance[-1]],
        atol=1e-6,
    )
    expected = {"n": 80, "mean": pytest.approx(distance.mean(), abs=1e-6), "inverted": 0}
    assert tiny.metrics["distance"] == expected


def test_a_model_that_returns_its_input_is_seen_through(
    folder: Path, data: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "_REAL_PICTURES", 30)  # of larger pictures, fewer are measured
    table = measured(lambda x: x, Artifact.read(folder), data, cache)
    assert table["drift"] == {"f": 0.0, "f2": 0.0}
    assert table["distance_quantiles"] == [0.0] * 101
    assert table["clean"]["ssim"] == 1.0
    generation = table["generation"]
    assert generation["f"]["frechet"] == generation["f3"]["frechet"]
    assert generation["f"]["frechet"] > 5 * generation["training"]["frechet"]  # noise is no picture
    for row in table["restoration"].values():
        assert row["f"] == row["input"]
    assert table["data"] == {"held_out": 80, "measured": 30}
    assert table["distance"]["n"] == 30


def sound(pictures: FloatRows) -> Any:
    """What f should be: latents become these pictures, one each; what is a picture already
    stays.
    """

    def f(x: FloatRows) -> FloatRows:
        latents = np.abs(x).max((1, 2, 3)) > 1.0
        return np.where(latents[:, None, None, None], np.resize(pictures, x.shape), x)

    return f


def test_real_pictures_against_real_ones_are_the_floor(
    folder: Path, data: Dataset, cache: Path
) -> None:
    """A set with a known answer: f(z) are pictures of the same kind that nobody trained on."""
    fresh = to_rows(patterns(500, 3)[0][:, None])
    table = measured(sound(fresh), Artifact.read(folder), data, cache, samples=200)
    f = table["generation"]["f"]
    assert f["frechet"] == pytest.approx(table["generation"]["training"]["frechet"], rel=0.5)
    assert f["multiple"] == pytest.approx(1.0, abs=0.5)
    # f changes no picture
    assert table["generation"]["training_after_f"] == table["generation"]["training"]
    assert 0.7 < table["diversity"] < 1.5
    assert f["kl"] < 0.05
    for start in ("samples", "pictures"):
        last = table["repeated_application"][start]["f10"]
        assert (last["at_rest"], last["same_class"]) == (1.0, 1.0)
    assert table["warnings"] == []
    copies = to_rows(random_subset(data.train.numpy(), 200))
    exact = measured(sound(copies), Artifact.read(folder), data, cache, samples=200)
    assert exact["diversity"] == 1.0
    assert exact["nearest"]["training_picture"]["samples"]["median"] == 0.0


@pytest.mark.parametrize("classes", [True, False])
def test_constant_pictures_are_flagged_as_a_collapse(
    classes: bool, folder: Path, data: Dataset, cache: Path
) -> None:
    one = np.zeros((1, 1, 8, 8), np.float32)
    if not classes:
        data = dataclasses.replace(data, train_labels=None, held_out_labels=None)
    table = measured(lambda x: np.repeat(one, len(x), 0), Artifact.read(folder), data, cache)
    assert table["nearest"]["other_sample"]["samples"]["median"] == 0.0
    assert table["diversity"] == 0.0
    assert table["drift"]["f"] == 0.0  # by which alone it would seem perfect
    flagged = " ".join(table["warnings"])
    assert all(word in flagged for word in ("alike", "changes real pictures"))
    if classes:
        assert table["generation"]["f"]["kl"] == pytest.approx(np.log(CLASSES), abs=1e-6)
        assert table["generation"]["f"]["multiple"] > 25
        assert "Classes are not equally frequent" in flagged
    else:
        assert set(table["generation"]) == {"f", "f2", "f3", "training", "training_after_f"}
        assert set(table["generation"]["f"]) == {"frechet", "multiple"}
        assert set(table["clean"]) == {"psnr", "ssim"}
        assert table["protocol"]["classifier"]["task"] == "rotation"
        assert "KL" not in summary(table)


def test_values_that_are_no_numbers_are_refused(folder: Path, data: Dataset, cache: Path) -> None:
    with pytest.raises(UserError, match="no numbers"):
        measured(
            lambda x: np.full_like(x, np.nan) if len(x) == 100 else x,
            Artifact.read(folder),
            data,
            cache,
        )


def rows(*values: float) -> FloatRows:
    """Constant 8×8 pictures."""
    return np.array(values, np.float32)[:, None, None, None] * np.ones((1, 1, 8, 8), np.float32)


def test_f_is_not_applied_again_to_rows_at_rest() -> None:
    calls: list[int] = []

    def f(x: FloatRows) -> FloatRows:
        calls.append(len(x))
        return np.where(x < 5, x + np.float32(1.0), x).astype(np.float32)

    counts = (1, 10, 100)
    (first, second), *others = apply_repeatedly(f, rows(1.0, 4.0, 7.0), counts)
    assert (first[:, 0, 0, 0].tolist(), second[:, 0, 0, 0].tolist()) == (
        [2.0, 5.0, 7.0],
        [3.0, 5.0, 7.0],
    )
    for y, after in others:
        assert y[:, 0, 0, 0].tolist() == after[:, 0, 0, 0].tolist() == [5.0, 5.0, 7.0]
    assert sum(calls) < 15


@pytest.mark.parametrize(("polarity", "inverted"), [("light-on-dark", 10), ("none", 0)])
def test_light_pictures_are_inverted_as_the_service_does(
    polarity: str, inverted: int, folder: Path, data: Dataset, cache: Path
) -> None:
    mixed = data.held_out.clone()
    mixed[:10] = 255 - mixed[:10] // 4
    mixed[10:, :, 0] = mixed[10:, :, -1] = 0
    mixed[10:, :, :, 0] = mixed[10:, :, :, -1] = 0
    mixed_data = dataclasses.replace(data, held_out=mixed)
    artifact = Artifact.read(folder)
    table = measured(lambda x: x, artifact, mixed_data, cache, polarity=polarity)
    assert table["distance"]["inverted"] == inverted


@pytest.mark.parametrize("wrong", ["file", "golden"])
def test_a_version_that_contradicts_itself_is_refused(
    wrong: str, folder: Path, data_file: Path, cache: Path
) -> None:
    if wrong == "file":
        says = r"golden\.npz: belongs to another model\.onnx"
        with (folder / MODEL_FILE).open("ab") as file:
            file.write(b"\xd2\x3e\x01x")  # an unknown field: the same model in other bytes
    else:
        says = "golden rows"
        golden = Artifact.read(folder).golden()
        (folder / GOLDEN_FILE).write_bytes(
            dataclasses.replace(golden, y=golden.y + np.float32(0.1)).to_bytes()
        )
    before = contents(folder)
    with pytest.raises(UserError, match=says):
        evaluate(folder, str(data_file), cache=cache, samples=20, steps=1)
    assert contents(folder) == before
