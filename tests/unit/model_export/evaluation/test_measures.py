"""The parts of an evaluation: metrics, the classifier, drawings and exact networks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn.functional import avg_pool2d

from model_export.data.datasets import Attributes, Dataset
from model_export.evaluation import metrics
from model_export.evaluation.classifier import Classifier, classifier_for
from model_export.evaluation.exactness import measure_exactness
from model_export.evaluation.projection import measure_drawings
from model_export.export.artifact import Artifact
from model_export.training.blocks import Blocks
from service.artifact.pixels import to_rows
from service.domain.latents import FloatRows
from tests.helpers.tiny_training import patterns
from tests.unit.model_export.conftest import seeded

Rows = NDArray[np.float32]


def pictures(count: int = 5, side: int = 16, channels: int = 1, seed: int = 0) -> Rows:
    generator = np.random.default_rng(seed)
    return generator.uniform(-1, 1, (count, channels, side, side)).astype(np.float32)


def test_frechet_is_that_of_the_matrix_root() -> None:
    generator = np.random.default_rng(1)
    a = generator.normal(size=(300, 6)) @ generator.normal(size=(6, 6))
    b = generator.normal(size=(200, 6)) + 0.5
    first = np.cov(a, rowvar=False)
    second = np.cov(b, rowvar=False)
    root = np.trace(sqrtm(first @ second).real)
    expected = (
        np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * root
    )
    assert metrics.frechet(a, b) == pytest.approx(float(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_and_psnr_are_the_standard_ones(channels: int) -> None:
    a = pictures(channels=channels)
    np.testing.assert_allclose(metrics.ssim(a, a), 1.0)
    assert np.isfinite(metrics.psnr(a, a)).all()  # of identical pictures
    b = (a + 0.3 * pictures(channels=channels, seed=1)).astype(np.float32)
    for i, (ssim, psnr) in enumerate(zip(metrics.ssim(a, b), metrics.psnr(a, b), strict=True)):
        # scikit-image has no annotations.
        expected = structural_similarity(
            a[i],
            b[i],
            channel_axis=0,
            data_range=2.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        ratio = peak_signal_noise_ratio(a[i], b[i], data_range=2.0)
        assert ssim == pytest.approx(expected, abs=1e-5)
        assert psnr == pytest.approx(ratio, abs=1e-4)


def test_nearest_is_brute_force_in_units_of_rows() -> None:
    # more references than one chunk holds
    queries, references = (patterns(30, 0)[0], patterns(5000, 1)[0])
    difference = queries[:, None].astype(float) - references[None]
    expected = np.sqrt(np.square(difference).mean((2, 3))).min(1) * 2 / 255
    np.testing.assert_allclose(metrics.nearest(queries, references), expected, atol=1e-9)


def test_a_picture_is_not_its_own_neighbour() -> None:
    levels = np.array([0, 10, 12, 255], np.uint8)[:, None, None, None] * np.ones(
        (4, 1, 2, 2), np.uint8
    )
    np.testing.assert_allclose(metrics.nearest(levels, levels), np.array([10, 2, 2, 243]) * 2 / 255)
    np.testing.assert_allclose(metrics.nearest(levels, levels.copy()), 0.0)


@pytest.fixture(scope="module")
def classifier(data: Dataset, cache: Path) -> Classifier:
    return classifier_for(data, cache)


def test_damaged_weights_are_trained_again(
    classifier: Classifier, data: Dataset, cache: Path, tmp_path: Path
) -> None:
    for path in cache.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:1000])
    before = torch.random.get_rng_state()
    again = classifier_for(data, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(
        map(
            torch.equal,
            again.network.state_dict().values(),
            classifier.network.state_dict().values(),
        )
    )
    assert max(len(path.read_bytes()) for path in tmp_path.iterdir()) > 1000


@pytest.fixture(scope="module")
def lit() -> Dataset:
    """Pictures with light from above or below, and with 0 to 2 dark columns."""
    generator = seeded(1)
    pictures = torch.randint(60, 140, (160, 1, 8, 8), dtype=torch.uint8, generator=generator)
    below, columns = (torch.randint(n, (160,), generator=generator) for n in (2, 3))
    for picture, low, dark in zip(pictures, below.tolist(), columns.tolist(), strict=True):
        part = picture[:, -3:] if low else picture[:, :3]
        part += 100
        picture[:, :, : 2 * dark] //= 4
    values = torch.stack([below, columns], 1).numpy()
    attributes = Attributes(("light", "columns"), values[:120], values[120:])
    return Dataset(
        "lit2",
        "lit2",
        "unknown",
        train=pictures[:120],
        held_out=pictures[120:],
        attributes=attributes,
    )


def test_attributes_are_read_each_for_itself(lit: Dataset, cache: Path) -> None:
    classifier = classifier_for(lit, cache)
    assert (classifier.task, classifier.heads) == ("attributes", (2, 3))
    assert classifier.attributes == ("light", "columns")
    predictions = classifier.predict(lit.held_out.numpy())
    assert lit.attributes is not None
    shares = (predictions.values == lit.attributes.held_out).mean(0)
    assert min(shares) > 0.8
    np.testing.assert_allclose(predictions.probabilities.sum(1), 2.0)


def projected(pictures: FloatRows) -> Any:
    """The ideal: the nearest of these pictures."""

    def f(x: FloatRows) -> FloatRows:
        squared = np.square(
            pictures.reshape(len(pictures), -1)[None] - x.reshape(len(x), 1, -1)
        ).sum(2)
        return pictures[squared.argmin(1)]

    return f


def test_a_projector_is_told_from_a_copy_and_from_a_stamp(
    models: Path, data: Dataset, cache: Path
) -> None:
    classifier = classifier_for(data, cache)
    real = data.held_out.numpy()
    train = data.train.numpy()
    card = Artifact.read(models / "tiny" / "1").card
    pictures = to_rows(np.concatenate([train, real]))

    functions = projected(pictures), lambda x: x, lambda x: np.repeat(pictures[:1], len(x), 0)
    tables = [measure_drawings(f, card, classifier, real, train) for f in functions]
    for kind in ("letters", "shapes"):
        check_drawings(*(table[kind] for table in tables))


def check_drawings(ideal: dict[str, Any], copy: dict[str, Any], stamp: dict[str, Any]) -> None:
    assert (ideal["auroc"], copy["auroc"]) == (1.0, 0.5)
    assert ideal["sure"]["f"] > copy["sure"]["f"] == copy["sure"]["u"]
    assert ideal["distance"]["f"] == pytest.approx(ideal["distance"]["nearest"], rel=0.2)
    assert copy["distance"]["f"] == 0.0
    # a stamp makes sure pictures, but not of what was drawn
    assert ideal["own"] > 0.5 > stamp["own"] == 0.0
    assert ideal["effective_classes"]["f"] > stamp["effective_classes"]["f"] == pytest.approx(1.0)


def drawn(rows: FloatRows) -> FloatRows:
    """A function that is far from exact, of values in [−1, 1]."""
    return np.tanh(np.roll(rows, 1, 3) + 0.5 * rows)


def stamp(rows: FloatRows) -> FloatRows:
    """Marks what it draws: its block means are whole. What is marked is returned as it is."""
    means, own = (
        avg_pool2d(torch.from_numpy(x), 2).numpy().repeat(2, 2).repeat(2, 3)
        for x in (drawn(rows), rows)
    )
    marked = (np.abs(own - own.round()) < 1e-3).all((1, 2, 3), keepdims=True)
    return np.where(marked, rows, drawn(rows) + means.round() - means)


def exact(rows: FloatRows) -> FloatRows:
    torch.manual_seed(0)
    network = Blocks(1, 2).requires_grad_(False)
    network.fitted.fill_(1)
    return network(torch.from_numpy(rows), torch.from_numpy(drawn(rows))).numpy()


@pytest.mark.parametrize("f", [exact, stamp])
def test_forged_pictures_and_noise_tell_a_mark_from_an_exact_network(f: object) -> None:
    assert callable(f)
    rows = np.random.default_rng(0).standard_normal((50, 1, 8, 8), np.float32)
    table = measure_exactness(f, rows, rows[::-1].clip(-1, 1), side=2)
    trick = f is stamp
    assert set(table["twice"].values()) == {1.0}
    assert table["forged"]["unchanged"] == float(trick)
    assert (table["forged"]["change"] > 0.2) is not trick
    assert (table["returned"]["0.005"] == 1.0) is not trick
    assert (set(table["file"].values()) == {1.0}) is not trick
