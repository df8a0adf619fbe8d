import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.data.datasets import Dataset
from model_export.errors import UserError
from model_export.evaluation import measures
from model_export.evaluation.classifier import classifier_for
from model_export.evaluation.evaluate import evaluate, summary
from model_export.evaluation.measures import Evaluation, random_subset
from model_export.evaluation.metrics import mean_distance
from model_export.export.artifact import Artifact, publish
from service.artifact.card import ModelCard, Steps
from service.artifact.files import GOLDEN_FILE, METRICS_FILE, MODEL_FILE, MODEL_FILES
from service.artifact.golden import digest_of
from service.artifact.pixels import to_rows
from service.domain.latents import FloatRows
from tests.helpers.tiny_training import CLASSES, SAMPLES, TinyModel, contents, patterns


def measured(
    f: Any, artifact: Artifact, data: Dataset, cache: Path, samples: int = 100, steps: int = 10, **card: object
) -> dict[str, Any]:
    return Evaluation(
        f,
        card=ModelCard.model_validate({**artifact.card.model_dump(), **card}),
        noise=artifact.noise,
        data=data,
        classifier=classifier_for(data, cache),
        samples=samples,
        steps=steps,
    ).run()


def identity(x: FloatRows) -> FloatRows:
    return x


def test_the_figures_enter_the_card_and_the_model_stays_the_same(tiny: TinyModel) -> None:
    table, evaluated = tiny.metrics, Artifact.read(tiny.evaluated)
    before = Artifact.read(tiny.models_fp16 / "tiny" / "1")
    digests = {name: digest_of((tiny.evaluated / name).read_bytes()) for name in MODEL_FILES.values()}
    assert table["model"] == {"name": "tiny", "version": "1", "digest": digests[MODEL_FILE], "files": digests}
    assert evaluated.card.distance_quantiles == tuple(table["distance_quantiles"])
    for chapter in ("warnings", "diversity", "health", "drift"):
        assert evaluated.card.quality[chapter] == table[chapter]
    assert evaluated.card.quality["generation"]["f"]["frechet"] == table["generation"]["f"]["frechet"]
    assert "classes" not in evaluated.card.quality["generation"]["f"]
    assert {**evaluated.card.model_dump(), "quality": {}, "distance_quantiles": None} == before.card.model_dump()
    rows = before.noise.rows(3, 0, 5)
    assert np.array_equal(evaluated.function(rows), before.function(rows))
    assert np.array_equal(evaluated.golden().y, before.golden().y)  # `golden` checks that they name the new file
    assert set(contents(tiny.evaluated)) == {*MODEL_FILES.values(), GOLDEN_FILE, METRICS_FILE}


def test_evaluation_is_reproducible_and_can_write_elsewhere(tiny: TinyModel, tmp_path: Path) -> None:
    folder, out = tmp_path / "1", tmp_path / "figures" / "tiny.json"
    publish(folder, contents(tiny.evaluated))
    table = evaluate(folder, str(tiny.data_file), cache=tiny.cache, out=out, samples=SAMPLES, steps=10, threads=1)
    assert json.loads(out.read_text()) == table == tiny.metrics
    assert contents(folder) == contents(tiny.evaluated)


@pytest.mark.parametrize("where", ["elsewhere", "nowhere"])
def test_no_figures_contradict_the_card(where: str, tiny: TinyModel, tmp_path: Path) -> None:
    folder, out = tmp_path / "1", tmp_path / where / "tiny.json"
    publish(folder, contents(tiny.evaluated))
    (tmp_path / "nowhere").touch()

    def measure() -> None:
        evaluate(folder, str(tiny.data_file), cache=tiny.cache, out=out, samples=20, steps=1, threads=1)

    if where == "nowhere":
        with pytest.raises(FileExistsError):
            measure()
        assert contents(folder) == contents(tiny.evaluated)
    else:
        measure()
        assert (
            json.loads((folder / METRICS_FILE).read_text())["model"]["digest"] == Artifact.read(folder).golden().digest
        )


def test_distances_are_those_of_held_out_pictures_in_8_bit(tiny: TinyModel, data: Dataset) -> None:
    x = to_rows(data.held_out.numpy())
    distance = np.sort(mean_distance(Artifact.read(tiny.evaluated).function(x), x))
    quantiles = tiny.metrics["distance_quantiles"]
    assert len(quantiles) == 101
    assert quantiles == sorted(quantiles)
    np.testing.assert_allclose(
        [quantiles[0], quantiles[50], quantiles[-1]], [distance[0], np.median(distance), distance[-1]], atol=1e-6
    )
    expected = {"n": 80, "mean": pytest.approx(distance.mean(), abs=1e-6), "inverted": 0}
    assert tiny.metrics["distance"] == expected


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


@pytest.mark.parametrize(("steps", "powers"), [(3, {"f", "f2", "f3"}), (6, {"f", "f2", "f3", "f6"})])
def test_what_the_service_generates_is_measured(
    folder: Path, data: Dataset, cache: Path, steps: int, powers: set[str]
) -> None:
    def halved(x: FloatRows) -> FloatRows:
        return x * np.float32(0.5)

    artifact = Artifact.read(folder)
    card = artifact.card.model_copy(update={"steps": Steps(generate=steps)})
    table = measured(halved, dataclasses.replace(artifact, card=card), data, cache)
    assert set(table["generation"]) - {"training", "training_after_f", "held_out"} == powers
    frechet = [row["frechet"] for name, row in table["generation"].items() if name in powers]
    assert frechet == sorted(frechet, reverse=True)  # less noise is nearer to pictures


def sound(pictures: FloatRows) -> Any:
    """What f should be: latents become these pictures, one each; what is a picture already stays."""

    def f(x: FloatRows) -> FloatRows:
        latents = np.abs(x).max((1, 2, 3)) > 1.0
        return np.where(latents[:, None, None, None], pictures[: len(x)], x)

    return f


def test_a_brief_measurement_is_part_of_the_full_one(folder: Path, data: Dataset, cache: Path) -> None:
    artifact = Artifact.read(folder)
    options: dict[str, Any] = {"card": artifact.card, "noise": artifact.noise, "data": data, "samples": 100}
    evaluation = Evaluation(artifact.function, classifier=classifier_for(data, cache), steps=10, **options)
    brief, full = evaluation.brief(), evaluation.run()
    assert brief["generation"].pop("f4")["frechet"] > 0
    assert brief["drift"].pop("f3") > 0
    assert brief["generation"] == full["generation"]
    assert brief["drift"] == full["drift"]
    assert brief["clean"] == full["clean"]
    assert brief["repeated_application"] == full["repeated_application"]
    noisy = full["restoration"]["noise_0.8"]
    assert brief["restoration"] == {"noise_0.8": {way: noisy[way] for way in ("input", "f", "f2")}}


def test_real_pictures_against_real_ones_are_the_floor(folder: Path, data: Dataset, cache: Path) -> None:
    """A set with a known answer: f(z) are pictures of the same kind that nobody trained on."""
    fresh = to_rows(patterns(500, 3)[0][:, None])
    table = measured(sound(fresh), Artifact.read(folder), data, cache, samples=200)
    f = table["generation"]["f"]
    assert f["frechet"] == pytest.approx(table["generation"]["training"]["frechet"], rel=0.5)
    assert f["multiple"] == pytest.approx(1.0, abs=0.5)
    assert table["generation"]["training_after_f"] == table["generation"]["training"]  # f changes no picture
    assert 0.7 < table["diversity"] < 1.5
    assert table["drift"]["f"] == 0.0
    assert table["clean"]["ssim"] == 1.0
    assert f["kl"] < 0.05
    assert sum(f["classes"]) == 200
    assert len(f["classes"]) == CLASSES
    assert f["confidence"] > 0.8
    assert {row["moved"] for name, row in table["repeated"].items() if name != "n"} == {0.0}
    assert table["warnings"] == []


def test_the_training_pictures_themselves_are_exactly_the_floor(folder: Path, data: Dataset, cache: Path) -> None:
    floor = to_rows(random_subset(data.train.numpy(), 200))
    table = measured(sound(floor), Artifact.read(folder), data, cache, samples=200)
    assert table["generation"]["f"]["multiple"] == table["generation"]["training"]["multiple"] == 1.0
    assert table["diversity"] == 1.0
    assert table["nearest"]["training_picture"]["samples"]["median"] == 0.0


@pytest.mark.parametrize("picture", ["grey", "real"])
def test_constant_pictures_are_flagged_as_a_collapse(picture: str, folder: Path, data: Dataset, cache: Path) -> None:
    one = to_rows(data.held_out.numpy()[:1]) if picture == "real" else np.zeros((1, 1, 8, 8), np.float32)
    table = measured(lambda x: np.repeat(one, len(x), 0), Artifact.read(folder), data, cache)
    assert table["nearest"]["other_sample"]["samples"]["median"] == 0.0
    assert table["diversity"] == 0.0
    assert table["generation"]["f"]["kl"] == pytest.approx(np.log(CLASSES), abs=1e-6)
    assert table["generation"]["f"]["multiple"] > 25
    assert table["drift"]["f"] == 0.0  # by which alone it would seem perfect
    flagged = " ".join(table["warnings"])
    assert all(word in flagged for word in ("classes", "alike", "does not keep real pictures"))


def test_a_collapse_is_flagged_without_classes(folder: Path, data: Dataset, cache: Path) -> None:
    one, bare = np.zeros((1, 1, 8, 8), np.float32), dataclasses.replace(data, train_labels=None, held_out_labels=None)
    table = measured(lambda x: np.repeat(one, len(x), 0), Artifact.read(folder), bare, cache)
    assert any("alike" in line for line in table["warnings"])


def test_a_few_pictures_in_turn_are_flagged_as_copies(folder: Path, data: Dataset, cache: Path) -> None:
    few = to_rows(patterns(10, 3)[0][:, None])
    table = measured(sound(np.tile(few, (50, 1, 1, 1))), Artifact.read(folder), data, cache)
    assert any("alike" in line for line in table["warnings"])


def test_an_f_that_keeps_moving_is_flagged(folder: Path, data: Dataset, cache: Path) -> None:
    fresh = to_rows(patterns(500, 3)[0][:, None])

    def f(x: FloatRows) -> FloatRows:
        return np.where(np.isin(x, fresh).all((1, 2, 3), keepdims=True), np.roll(x, 1, 3), sound(fresh)(x))

    table = measured(f, Artifact.read(folder), data, cache)
    assert table["drift"]["f"] > 0.05
    assert any("not idempotent" in line for line in table["warnings"])


def test_values_that_are_no_numbers_are_refused(folder: Path, data: Dataset, cache: Path) -> None:
    with pytest.raises(UserError, match="no numbers"):
        measured(lambda x: np.full_like(x, np.nan) if len(x) == 100 else x, Artifact.read(folder), data, cache)


def test_f_is_repeated(folder: Path, data: Dataset, cache: Path) -> None:
    def dim(x: FloatRows) -> FloatRows:
        return 0.5 * x

    table = measured(dim, Artifact.read(folder), data, cache, samples=50, steps=100)["repeated"]
    assert list(table) == ["n", "f", "f4", "f10", "f100"]
    first = dim(Artifact.read(folder).noise.rows(0, 0, 50))
    size = np.abs(first.astype(np.float64)).mean()
    assert table["f"]["moved"] == 0.0
    assert table["f4"]["drift"] == pytest.approx(size * 0.5**3 / 2, abs=1e-5)
    assert table["f4"]["moved"] == pytest.approx(size * (1 - 0.5**3), abs=1e-5)
    assert table["f100"] == {**table["f100"], "drift": 0.0, "kl": pytest.approx(np.log(CLASSES), abs=1e-6)}


def test_restoration_is_measured_against_the_clean_picture(folder: Path, data: Dataset, cache: Path) -> None:
    clean = to_rows(data.held_out.numpy())
    table = measured(lambda x: clean if len(x) == len(clean) else x, Artifact.read(folder), data, cache)
    for row in table["restoration"].values():
        assert row["baselines"]["n"] == 10
        assert row["f"]["ssim"] == 1.0
        assert row["f"]["psnr"] > row["input"]["psnr"]
        assert row["f"]["accuracy"] >= row["input"]["accuracy"]


def test_larger_pictures_are_measured_on_fewer(
    folder: Path, data: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "_REAL_PICTURES", 30)
    monkeypatch.setattr(measures, "_NEAREST_VALUES", 0)
    monkeypatch.setattr(measures, "_MIN_QUERIES", 20)
    seen: list[int] = []

    def watched(x: FloatRows) -> FloatRows:
        seen.append(len(x))
        return x

    table = measured(watched, Artifact.read(folder), data, cache)
    assert (table["data"]["held_out"], table["data"]["measured"], table["distance"]["n"]) == (80, 30, 30)
    nearest = table["nearest"]["training_picture"]
    assert (nearest["samples"]["n"], nearest["real"]["n"]) == (20, 20)
    assert 80 not in seen


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
    unchanged = measured(identity, artifact, mixed_data, cache, polarity="none")
    assert unchanged["distance"]["inverted"] == 0


def test_without_classes_there_are_features_only(folder: Path, data: Dataset, cache: Path) -> None:
    unlabelled = dataclasses.replace(data, train_labels=None, held_out_labels=None, sha256="unlabelled")
    table = measured(identity, Artifact.read(folder), unlabelled, cache)
    assert set(table["generation"]) == {"f", "f2", "f3", "training", "training_after_f"}
    assert set(table["generation"]["f"]) == {"frechet", "multiple"}
    assert set(table["clean"]) == {"psnr", "ssim"}
    assert "rotations" in table["protocol"]["features"]
    assert "–" in summary(table)


def test_other_data_are_refused(folder: Path, tmp_path: Path, cache: Path) -> None:
    before = contents(folder)
    x = patterns(30, 5)[0]
    np.savez(tmp_path / "other.npz", x_train=x, x_test=x)
    with pytest.raises(UserError, match=r"other\.npz"):
        evaluate(folder, str(tmp_path / "other.npz"), cache=cache)
    assert contents(folder) == before


def test_too_few_samples_or_steps_are_refused(folder: Path, data_file: Path, cache: Path) -> None:
    with pytest.raises(UserError, match="--samples 1"):
        evaluate(folder, str(data_file), cache=cache, samples=1)
    with pytest.raises(UserError, match="--steps"):
        evaluate(folder, str(data_file), cache=cache, steps=0)


def test_golden_rows_of_another_file_are_refused(folder: Path, data_file: Path, cache: Path) -> None:
    with (folder / MODEL_FILE).open("ab") as file:
        file.write(b"\xd2\x3e\x01x")  # an unknown field: the same model in other bytes
    with pytest.raises(UserError, match=r"golden\.npz: belongs to another model\.onnx"):
        evaluate(folder, str(data_file), cache=cache)


def test_a_model_that_does_not_give_its_golden_rows_is_not_stamped(folder: Path, data_file: Path, cache: Path) -> None:
    golden = Artifact.read(folder).golden()
    wrong = dataclasses.replace(golden, y=golden.y + np.float32(0.1))
    (folder / GOLDEN_FILE).write_bytes(wrong.to_bytes())
    before = contents(folder)
    with pytest.raises(UserError, match="golden rows"):
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


def test_the_summary_shows_the_figures(tiny: TinyModel) -> None:
    table = tiny.metrics
    text = summary(table)
    assert f"{table['generation']['f']['frechet']:.3f}" in text
    assert table["warnings"]  # a training of a second is poor
    assert all(warning in text for warning in table["warnings"])
    assert all(name in text for name in table["restoration"])
