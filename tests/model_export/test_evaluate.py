import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.artifact import GOLDEN, METRICS, MODEL, Artifact, Golden, digest_of
from model_export.classifier import classifier_for
from model_export.data import Dataset, load_dataset
from model_export.errors import UserError
from model_export.evaluate import evaluate, summary
from model_export.metrics import mean_distance, to_rows
from model_export.protocol import Evaluation
from service.card import ModelCard
from service.domain.latents import FloatRows
from tests.model_export.small import CLASSES, contents, patterns


@pytest.fixture(scope="module")
def data(data_file: Path) -> Dataset:
    return load_dataset(str(data_file), size=8, channels=1)


def measured(
    f: Any, artifact: Artifact, data: Dataset, cache: Path, samples: int = 100, **card: object
) -> dict[str, Any]:
    return Evaluation(
        f,
        card=ModelCard.model_validate({**artifact.card.model_dump(), **card}),
        noise=artifact.noise,
        data=data,
        classifier=classifier_for(data, cache),
        samples=samples,
    ).run()


def identity(x: FloatRows) -> FloatRows:
    return x


def test_the_figures_enter_the_card_and_the_model_stays_whole(folder: Path, data_file: Path, cache: Path) -> None:
    before = Artifact.read(folder)
    golden = before.golden()
    table = evaluate(folder, str(data_file), cache=cache, samples=100, threads=1)
    after = Artifact.read(folder)
    assert json.loads((folder / METRICS).read_text()) == table
    assert table["model"] == {"name": "tiny", "version": "1", "digest": digest_of((folder / MODEL).read_bytes())}
    assert after.card.distance_quantiles == tuple(table["distance_quantiles"])
    assert after.card.quality["generation"]["f"]["frechet"] == table["generation"]["f"]["frechet"]
    assert "classes" not in after.card.quality["generation"]["f"]
    assert {**after.card.model_dump(), "quality": {}, "distance_quantiles": None} == before.card.model_dump()
    rows = before.noise.rows(3, 0, 5)
    assert np.array_equal(after.function(rows), before.function(rows))
    assert np.array_equal(after.golden().y, golden.y)  # and they name the new file
    assert set(contents(folder.parent)) == {f"1/{name}" for name in (MODEL, GOLDEN, METRICS)}


def test_measuring_again_changes_nothing(folder: Path, data_file: Path, cache: Path) -> None:
    evaluate(folder, str(data_file), cache=cache, samples=50, threads=1)
    before = contents(folder)
    evaluate(folder, str(data_file), cache=cache, samples=50, threads=1)
    assert contents(folder) == before


def test_figures_can_go_elsewhere(folder: Path, data_file: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures" / "tiny.json"
    table = evaluate(folder, str(data_file), cache=cache, out=out, samples=50, threads=1)
    assert json.loads(out.read_text()) == table
    assert set(contents(folder)) == {MODEL, GOLDEN}


def test_distances_are_those_of_held_out_pictures_in_8_bit(
    folder: Path, data: Dataset, data_file: Path, cache: Path
) -> None:
    table = evaluate(folder, str(data_file), cache=cache, samples=50, threads=1)
    x = to_rows(data.held_out.numpy())
    distance = np.sort(mean_distance(Artifact.read(folder).function(x), x))
    quantiles = table["distance_quantiles"]
    assert len(quantiles) == 101
    assert quantiles == sorted(quantiles)
    np.testing.assert_allclose(
        [quantiles[0], quantiles[50], quantiles[-1]], [distance[0], np.median(distance), distance[-1]], atol=1e-6
    )
    assert table["distance"] == {"n": 80, "mean": pytest.approx(distance.mean(), abs=1e-6), "inverted": 0}


def test_a_model_that_returns_its_input_is_seen_through(folder: Path, data: Dataset, cache: Path) -> None:
    table = measured(identity, Artifact.read(folder), data, cache)
    assert table["drift"] == {"f": 0.0, "f2": 0.0}
    assert table["distance_quantiles"] == [0.0] * 101
    assert table["clean"]["ssim"] == 1.0
    generation = table["generation"]
    assert generation["f"]["frechet"] == generation["f3"]["frechet"]
    assert generation["f"]["frechet"] > 5 * generation["training"]["frechet"]  # noise is no picture
    for row in table["restoration"].values():
        assert row["f"] == row["input"] == row["f2"]


def test_a_perfect_generator_reaches_the_floor(folder: Path, data: Dataset, cache: Path) -> None:
    pictures = to_rows(patterns(500, 3)[0][:, None])

    def oracle(x: FloatRows) -> FloatRows:
        return pictures[: len(x)]

    table = measured(oracle, Artifact.read(folder), data, cache, samples=200)
    f, training = table["generation"]["f"], table["generation"]["training"]
    assert f["frechet"] < 3 * training["frechet"]
    assert f["kl"] < 0.05
    assert sum(f["classes"]) == 200
    assert len(f["classes"]) == CLASSES
    assert f["confidence"] > 0.8


def test_copies_show(folder: Path, data: Dataset, cache: Path) -> None:
    one, train = to_rows(patterns(1, 3)[0][:, None]), to_rows(data.train.numpy())
    artifact = Artifact.read(folder)
    collapsed = measured(lambda x: np.repeat(one, len(x), 0), artifact, data, cache)
    assert collapsed["nearest"]["other_sample"]["samples"]["median"] == 0.0
    assert collapsed["generation"]["f"]["kl"] == pytest.approx(np.log(CLASSES), abs=1e-6)
    learned_by_heart = measured(lambda x: train[: len(x)], artifact, data, cache)
    assert learned_by_heart["nearest"]["training_picture"]["samples"]["median"] == 0.0


def test_restoration_is_measured_against_the_clean_picture(folder: Path, data: Dataset, cache: Path) -> None:
    clean = to_rows(data.held_out.numpy())
    table = measured(lambda x: clean if len(x) == len(clean) else x, Artifact.read(folder), data, cache)
    for row in table["restoration"].values():
        assert row["f"]["ssim"] == 1.0
        assert row["f"]["psnr"] > row["input"]["psnr"]
        assert row["f"]["accuracy"] >= row["input"]["accuracy"]


def test_light_pictures_are_inverted_as_the_service_does(folder: Path, data: Dataset, cache: Path) -> None:
    mixed = data.held_out.clone()
    mixed[:10] = 255 - mixed[:10] // 4
    mixed[10:, :, 0] = mixed[10:, :, -1] = 0
    mixed[10:, :, :, 0] = mixed[10:, :, :, -1] = 0
    seen: list[FloatRows] = []

    def watched(x: FloatRows) -> FloatRows:
        seen.append(x)
        return x

    artifact, mixed_data = Artifact.read(folder), dataclasses.replace(data, held_out=mixed)
    table = measured(watched, artifact, mixed_data, cache, polarity="light-on-dark")
    assert table["distance"]["inverted"] == 10
    assert any(np.array_equal(x[:10], to_rows(255 - mixed[:10].numpy())) for x in seen)
    assert measured(identity, artifact, mixed_data, cache)["distance"]["inverted"] == 0


def test_without_classes_there_are_features_only(folder: Path, data: Dataset, cache: Path) -> None:
    unlabelled = dataclasses.replace(data, train_labels=None, held_out_labels=None, sha256="unlabelled")
    table = measured(identity, Artifact.read(folder), unlabelled, cache)
    assert set(table["generation"]) == {"f", "f2", "f3", "training"}
    assert set(table["generation"]["f"]) == {"frechet"}
    assert set(table["clean"]) == {"psnr", "ssim"}
    assert "four rotations; the data have no classes" in table["protocol"]["features"]
    assert "accuracy" in summary(table)
    assert "–" in summary(table)


def test_other_data_are_refused(folder: Path, tmp_path: Path, cache: Path) -> None:
    before = contents(folder)
    x = patterns(30, 5)[0]
    np.savez(tmp_path / "other.npz", x_train=x, x_test=x)
    with pytest.raises(UserError, match=r"other\.npz: not what tiny/1 was trained on, patterns\.npz of another SHA"):
        evaluate(folder, str(tmp_path / "other.npz"), cache=cache)
    assert contents(folder) == before


def test_too_few_samples_are_refused(folder: Path, data_file: Path, cache: Path) -> None:
    with pytest.raises(UserError, match="at least 2"):
        evaluate(folder, str(data_file), cache=cache, samples=1)


def test_golden_rows_of_another_file_are_refused(folder: Path, data_file: Path, cache: Path) -> None:
    with (folder / MODEL).open("ab") as file:
        file.write(b"\xd2\x3e\x01x")  # an unknown field: the same model in other bytes
    with pytest.raises(UserError, match=r"golden\.npz: belongs to another model\.onnx"):
        evaluate(folder, str(data_file), cache=cache)


def test_a_model_that_does_not_give_its_golden_rows_is_not_stamped(folder: Path, data_file: Path, cache: Path) -> None:
    artifact = Artifact.read(folder)
    golden = artifact.golden()
    (folder / GOLDEN).write_bytes(Golden(x=golden.x, y=golden.y + np.float32(0.1)).to_bytes(artifact.data))
    before = contents(folder)
    with pytest.raises(UserError, match=r"tiny/1: differs from its golden rows by 0\.1; `verify` it first"):
        evaluate(folder, str(data_file), cache=cache, samples=20)
    assert contents(folder) == before


def test_a_failure_on_the_way_leaves_the_version_as_it_was(
    folder: Path, data_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Evaluation) -> None:
        raise KeyboardInterrupt

    before = contents(folder)
    monkeypatch.setattr(Evaluation, "run", fail)
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, str(data_file), cache=cache)
    assert contents(folder.parent) == {f"1/{name}": content for name, content in before.items()}


def test_the_summary_shows_the_figures(folder: Path, data_file: Path, cache: Path) -> None:
    table = evaluate(folder, str(data_file), cache=cache, samples=50, threads=1)
    lines = summary(table).splitlines()
    assert f"{table['generation']['f']['frechet']:.3f}" in lines[1]
    assert [line.split()[0] for line in lines] == [
        *("generation", "f", "f2", "f3", "training", "held_out", "restoration", "clean"),
        *table["restoration"],
    ]
