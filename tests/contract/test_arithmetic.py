import math
from typing import Any

import numpy as np
import pytest

from service.api.native.answers import ArithmeticAnswer
from service.domain.latents import FloatRows
from tests.contract.data import b64, latents, npy, pixels, step_params
from tests.contract.harness import Service, checked, problem
from tests.contract.test_project import LIGHT, PICTURE

PATH = "/latent-arithmetic"
TERMS = [{"seed": 1}, {"seed": 2, "index": 3, "weight": -0.5}]
STEPS = 2  # the card's for generation
LENGTH = 8.0  # the card's, of an 8×8 latent


def rescaled(
    z: np.ndarray[tuple[int, ...], np.dtype[Any]],
) -> FloatRows:
    return (z * (LENGTH / math.sqrt(float((z.astype(np.float64) ** 2).sum())))).astype(np.float32)


def test_defaults(service: Service) -> None:
    response = service.post(PATH, {"terms": TERMS})
    answer = checked(response, ArithmeticAnswer)
    assert list(response.json()) == ["model", "request_id", "seed", "images", "timing"]
    assert response.json()["seed"] is None
    assert "X-IGN-Seed" not in response.headers
    [image] = answer.images
    assert (image.index, image.steps, image.drift, image.trajectory) == (0, STEPS, None, None)
    z = latents(1).astype(np.float64) - 0.5 * latents(2, 3)
    np.testing.assert_allclose(
        service.rows(PATH, terms=TERMS), step_params(rescaled(z), STEPS), atol=1e-5
    )


def test_without_normalizing_the_sum_is_what_it_is(service: Service) -> None:
    z = (latents(1).astype(np.float64) - 0.5 * latents(2, 3)).astype(np.float32)
    np.testing.assert_allclose(
        service.rows(PATH, terms=TERMS, normalize=False, steps=1), step_params(z, 1), atol=1e-5
    )


@pytest.mark.parametrize("weight", [1.0, 0.01, 10.0])
def test_a_single_term_has_only_a_direction(weight: float, service: Service) -> None:
    expected = step_params(rescaled(latents(7)), 1)
    np.testing.assert_allclose(
        service.rows(PATH, terms=[{"seed": 7, "weight": weight}], steps=1), expected, atol=1e-5
    )


def test_terms_of_every_kind(service: Service) -> None:
    latent = latents(9)[0]
    x = pixels(PICTURE).astype(np.float64)[None, None] * 2 / 255 - 1
    z = latents(1).astype(np.float64) - 2 * x.astype(np.float32) + 0.25 * latent[None]
    for image in (PICTURE, LIGHT):  # which is inverted like any other
        terms: list[dict[str, Any]] = [
            {"seed": 1},
            {"image": b64(image), "weight": -2},
            {"latent": b64(npy(latent)), "weight": 0.25},
        ]
        np.testing.assert_allclose(
            service.rows(PATH, terms=terms, steps=3), step_params(rescaled(z), 3), atol=1e-5
        )
    assert service.rows(PATH, terms=[{"seed": seed} for seed in range(16)]).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "terms", [[{"seed": 1}, {"seed": 1, "weight": -1}], [{"seed": 1, "weight": 0}]]
)
def test_a_sum_of_zero_is_no_latent(terms: list[object], normalize: bool, service: Service) -> None:
    response = service.post(PATH, {"terms": terms, "normalize": normalize})
    problem(response, 422, "invalid_value", "terms")


LARGE = b64(npy(np.full((1, 8, 8), 1e6, np.float32)))  # the largest latent that is allowed


def test_a_sum_beyond_the_bound_is_the_callers_fault(service: Service) -> None:
    failures = service.metric("ign_scheduled_requests_total", outcome="model_failure")
    body = {"terms": [{"latent": LARGE, "weight": 2}], "normalize": False}
    problem(service.post(PATH, body), 422, "invalid_value", "terms")
    assert service.post(PATH, body | {"normalize": True}).status_code == 200
    assert service.post(PATH, {"terms": [{"latent": LARGE}], "normalize": False}).status_code == 200
    assert service.metric("ign_scheduled_requests_total", outcome="model_failure") == failures
    assert service.errors == []


def test_weights_at_the_ends_of_their_range(service: Service) -> None:
    z = 10 * latents(1).astype(np.float64) - 10 * latents(2)
    terms = [{"seed": 1, "weight": 10}, {"seed": 2, "weight": -10.0}]
    np.testing.assert_allclose(
        service.rows(PATH, terms=terms, steps=1), step_params(rescaled(z), 1), atol=1e-5
    )
