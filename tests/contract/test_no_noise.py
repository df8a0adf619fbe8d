"""A model that makes nothing of noise: everything but noise works."""

from collections.abc import Iterator

import numpy as np
import pytest

from service.api.info.routes import ModelList, ServedCard
from service.artifact.card import Origin
from tests.contract.data import CALLS, b64
from tests.contract.harness import Service, checked, problem, serving, settings
from tests.contract.oip import as_binary, infer, rows_of
from tests.helpers.onnx_models import reference, sample_rows, write_model
from tests.helpers.pictures import noise, save


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("imported")
    origin = Origin(file="net.onnx", sha256="0" * 64, folded=("BGR",))
    write_model(folder, "grey", "1", polarity="none", origin=origin, imported=True)
    with serving(settings(folder)) as running:
        yield running


@pytest.mark.parametrize("path", [path for path, body in CALLS.items() if "images" not in body])
def test_what_needs_noise_is_422(service: Service, path: str) -> None:
    problem(service.post(path, CALLS[path]), 422, "no_noise", "model")


def test_the_card_says_what_is_unknown_and_where_the_network_came_from(service: Service) -> None:
    card = checked(service.get("/models/grey"), ServedCard)
    assert (card.noise, card.objective, card.data, card.training) == (None,) * 4
    assert card.origin == Origin(file="net.onnx", sha256="0" * 64, folded=("BGR",))
    assert checked(service.get("/models"), ModelList).models[0]["noise"] is None


def test_everything_else_works(service: Service) -> None:
    image = save(noise(8, 8))
    images = {"images": [b64(image)]}
    (answer,) = service.images("/project", images | {"steps": 3, "score": True})
    assert answer["drift"] is not None
    assert service.images("/score", images)[0]["distance"] == answer["distance"]
    rows = sample_rows(3)
    np.testing.assert_allclose(
        rows_of(infer(service, *as_binary(rows))), reference(rows), atol=1e-6
    )
