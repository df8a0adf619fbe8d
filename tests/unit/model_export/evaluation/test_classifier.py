from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.data.datasets import Attributes, Dataset
from model_export.evaluation.classifier import Classifier, classifier_for


@pytest.fixture(scope="module")
def classifier(data: Dataset, cache: Path) -> Classifier:
    return classifier_for(data, cache)


def test_damaged_weights_are_trained_again(
    classifier: Classifier, data: Dataset, cache: Path, tmp_path: Path
) -> None:
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    classifier_for(data, cache)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files  # it is found again
    for path in files:
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
    generator = torch.Generator().manual_seed(1)
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
    assert list(classifier.attributes) == ["light", "columns"]
    assert min(classifier.attributes.values()) > 0.8
    assert classifier.accuracy == pytest.approx(np.mean(list(classifier.attributes.values())))
    predictions = classifier.predict(lit.held_out.numpy())
    assert lit.attributes is not None
    shares = (predictions.values == lit.attributes.held_out).mean(0)
    assert shares.tolist() == pytest.approx(list(classifier.attributes.values()))
    np.testing.assert_allclose(predictions.probabilities.sum(1), 2.0)
