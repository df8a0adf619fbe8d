"""What ships with the repository is what its cards say, and the service keeps its promises with
it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from service.artifact.card import to_metadata
from service.artifact.onnx_file import read_metadata
from service.domain.latents import NoiseSource
from service.models.loaded import LoadedModel
from service.models.repository import Repository
from service.runtime.onnx_model import OnnxModel
from tests.helpers.live import GENERATORS, MODELS, SHIPPED, live_service

LARGEST = 21 * 2**20


@pytest.fixture(scope="module")
def shipped() -> Iterator[dict[str, LoadedModel]]:
    repository = Repository(MODELS, lambda data: [OnnxModel(data, device="cpu")], default="mnist")
    models = dict(repository.load_all().models)
    yield models
    for model in models.values():
        model.close()


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with live_service() as url, httpx.Client(base_url=url, timeout=300) as client:
        yield client


def test_every_shipped_model_verifies_and_says_where_it_comes_from(
    shipped: dict[str, LoadedModel],
) -> None:
    assert set(SHIPPED.values()) == set(shipped)
    for ref, model in shipped.items():
        card = model.card
        assert card.training is not None
        assert card.data is not None
        assert (MODELS / ref / "model.onnx").stat().st_size <= LARGEST
        assert read_metadata((MODELS / ref / "model.onnx").read_bytes()) == to_metadata(card)
        assert model.golden.reproducible == "exact"
        assert card.training.command.startswith("python -m model_export train --preset ")
        assert len(card.training.sources) == 64
        assert len(card.data.sha256) == 64
        if card.noise is None:  # it restores, and makes nothing of noise
            means = card.quality["ocr"]["means"]["seen"]
            assert means["f"] < means["background"] < means["raw"]
        else:
            assert card.distance_quantiles is not None
            assert card.quality["generation"]["f"]["frechet"] > 0


@pytest.mark.parametrize(("ref", "kept"), [*zip(GENERATORS, (0.1, 0.1, 0.03), strict=True)])
def test_generated_images_differ_and_are_kept(
    shipped: dict[str, LoadedModel], ref: str, kept: float
) -> None:
    model = shipped[ref]
    y = model.instances[0].run(NoiseSource(model.card.shape).rows(0, 0, 64))
    assert y.std(axis=0).mean() > 0.2
    assert np.abs(model.instances[0].run(y) - y).mean() < kept


def test_a_seed_gives_the_same_bytes_alone_in_a_batch_and_under_load(client: httpx.Client) -> None:
    def one(index: int) -> str:
        body = {"seed": 7, "offset": index, "n": 1}
        return client.post("/generate", json=body).raise_for_status().json()["images"][0]["data"]

    together = [
        image["data"]
        for image in client.post("/generate", json={"seed": 7, "n": 64}).json()["images"]
    ]
    assert [one(i) for i in range(64)] == together
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(one, range(64))) == together
