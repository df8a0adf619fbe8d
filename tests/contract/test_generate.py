import re
from typing import Any

import httpx
import numpy as np
import pytest

from service.api.native.answers import GenerateAnswer
from tests.contract.data import (
    array,
    latents,
    npy,
    pixels,
    quantised,
    step_params,
    unb64,
)
from tests.contract.harness import Service, checked

STEPS = 2  # the card's


def generated(service: Service, **options: object) -> GenerateAnswer:
    return checked(service.post("/generate", options), GenerateAnswer)


@pytest.mark.parametrize(
    "body",
    [
        {"content": b""},
        {"content": b"", "headers": {"Content-Type": "application/json"}},
        {"content": b"{}", "headers": {"Content-Type": "application/json; charset=utf-8"}},
        {"json": {"model": None, "seed": None, "steps": None, "tolerance": None, "record": None}},
    ],
)
def test_everything_is_optional(service: Service, body: dict[str, Any]) -> None:
    response = service.post("/generate", **body)
    answer = checked(response, GenerateAnswer)
    assert 0 <= answer.seed < 2**32
    assert generated(service).seed != answer.seed
    assert response.headers["X-IGN-Seed"] == str(answer.seed)
    assert answer.model.name == "grey"
    assert answer.model.version == "10"
    assert len(answer.images) == 1
    assert answer.images[0].steps == STEPS
    expected = quantised(service.rows("/generate", seed=answer.seed, n=1, steps=STEPS))
    np.testing.assert_array_equal(pixels(unb64(answer.images[0].data)), expected[0])


def test_every_member_of_the_contracts_example(service: Service) -> None:
    body = {"model": "grey", "n": 4, "seed": 7, "offset": 0, "steps": 2, "tolerance": None}
    body |= {"record": None, "noise_scale": 1.0, "score": False, "format": "png"}
    response = service.post("/generate", body)
    answer = response.json()
    assert list(answer) == ["model", "request_id", "seed", "images", "timing"]
    assert list(answer["model"]) == ["name", "version", "digest"]
    assert re.fullmatch("sha256:[0-9a-f]{64}", answer["model"]["digest"])
    assert answer["request_id"] == response.headers["X-Request-ID"]
    assert list(answer["timing"]) == ["decode_ms", "queue_ms", "compute_ms", "encode_ms"]
    assert all(value >= 0 for value in answer["timing"].values())
    members = [
        "index",
        "data",
        "format",
        "width",
        "height",
        "steps",
        "converged",
        "distance",
        "drift",
        "trajectory",
    ]
    assert [list(image) for image in answer["images"]] == [members] * 4
    assert [image["index"] for image in answer["images"]] == [0, 1, 2, 3]
    given = {"index": 0, "format": "png", "width": 8, "height": 8, "steps": 2, "converged": False}
    assert answer["images"][0].items() >= (given | {"drift": None, "trajectory": None}).items()


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_seeds_at_the_ends_of_their_range(service: Service, seed: int) -> None:
    np.testing.assert_allclose(
        service.rows("/generate", seed=seed, n=1), step_params(latents(seed), STEPS), atol=1e-5
    )
    last = 2**32 - 1  # of indices
    assert [image.index for image in generated(service, seed=seed, offset=last).images] == [last]


def test_offset_continues_the_seeds_series(service: Service) -> None:
    answer = generated(service, seed=5, offset=3, n=2)
    assert [image.index for image in answer.images] == [3, 4]
    found = service.rows("/generate", seed=5, offset=3, n=2)
    np.testing.assert_allclose(found, step_params(latents(5, 3, 2), STEPS), atol=1e-5)
    np.testing.assert_array_equal(
        [pixels(unb64(image.data)) for image in answer.images], quantised(found)
    )


@pytest.mark.parametrize("scale", [0, 0.5, 2])
def test_noise_scale(service: Service, scale: float) -> None:
    expected = step_params(latents(4) * np.float32(scale), 1)
    np.testing.assert_allclose(
        service.rows("/generate", seed=4, steps=1, noise_scale=scale), expected, atol=1e-5
    )


def test_distance_and_drift_are_means_in_the_models_units(service: Service) -> None:
    z = latents(9, 0, 3)
    steps = [step_params(z, k) for k in range(4)]
    answer = generated(service, seed=9, n=3, steps=2, score=True)
    for i, image in enumerate(answer.images):
        assert image.distance == pytest.approx(np.abs(steps[1][i] - steps[0][i]).mean(), abs=2e-6)
        assert image.drift == pytest.approx(np.abs(steps[3][i] - steps[2][i]).mean(), abs=2e-6)
        assert image.steps == 2
        assert image.distance == round(image.distance, 6)
    assert generated(service, seed=9, n=3, steps=2).images[0].data == answer.images[0].data


def test_record_returns_the_steps_on_the_way(service: Service) -> None:
    z = latents(6)
    image = generated(service, seed=6, steps=4, record=[0, 1, 3]).images[0]
    trajectory = image.trajectory or []
    assert [step.step for step in trajectory] == [0, 1, 3]
    assert trajectory[0].change is None
    # far beyond the model's range, to which pictures are clipped and arrays are not
    assert np.abs(z).max() > 2
    np.testing.assert_array_equal(pixels(unb64(trajectory[0].data)), quantised(z)[0])
    (start,) = (
        generated(service, seed=6, steps=4, record=[0], format="npy").images[0].trajectory or []
    )
    np.testing.assert_array_equal(array(unb64(start.data)), z[0])
    for step in trajectory[1:]:
        expected = quantised(service.rows("/generate", seed=6, steps=step.step))[0]
        np.testing.assert_array_equal(pixels(unb64(step.data)), expected)
    for step in trajectory[1:]:
        change = np.abs(step_params(z, step.step) - step_params(z, step.step - 1)).mean()
        assert step.change == pytest.approx(change, abs=2e-6)
    assert image.steps == 4
    assert image.data == generated(service, seed=6, steps=4).images[0].data


def test_tolerance_stops_a_row_early(service: Service) -> None:
    z = latents(8)
    changes = [
        float(np.abs(step_params(z, k) - step_params(z, k - 1)).mean()) for k in range(1, 12)
    ]
    stop = 5
    tolerance = (changes[stop - 1] + changes[stop - 2]) / 2
    image = generated(
        service, seed=8, steps=100, tolerance=tolerance, record=[1, 5, 6, 100]
    ).images[0]
    assert (image.converged, image.steps) == (True, stop)
    assert service.metric("ign_early_exits_total", model="grey/10") > 0
    assert [step.step for step in image.trajectory or []] == [1, 5]
    assert image.data == generated(service, seed=8, steps=stop).images[0].data
    image = generated(service, seed=8, steps=3, tolerance=tolerance).images[0]
    assert (image.converged, image.steps) == (False, 3)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "npy"])
def test_formats_of_base64(service: Service, form: str) -> None:
    image = generated(service, seed=2, format=form, record=[2]).images[0]
    assert image.format == form
    row = service.rows("/generate", seed=2)
    for data in (image.data, (image.trajectory or [])[0].data):
        if form == "npy":
            decoded = array(unb64(data))
            assert decoded.dtype == np.dtype("<f4")
            assert decoded.shape == (1, 8, 8)
            np.testing.assert_array_equal(decoded, row[0])
        else:
            slack = 3 if form == "jpeg" else 0
            difference = pixels(unb64(data), "L").astype(int) - quantised(row)[0]
            assert np.abs(difference).max() <= slack


def raw(service: Service, accept: str, **options: object) -> httpx.Response:
    response = service.post("/generate", {"seed": 3, **options}, accept=accept)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == accept
    return response


def test_a_one_row_image_answer_is_that_picture(service: Service) -> None:
    for form in ("png", "webp", "jpeg"):
        picture = raw(service, f"image/{form}").content
        assert picture == unb64(generated(service, seed=3, format=form).images[0].data)


def test_row_metrics_of_raw_answers_are_headers(service: Service) -> None:
    images = generated(service, seed=3, n=3, score=True).images
    for accept in ("image/png", "application/x-npy"):
        headers = raw(service, accept, n=3, score=True).headers
        assert headers["X-IGN-Steps"] == "2,2,2"
        assert headers["X-IGN-Distance"] == ",".join(str(image.distance) for image in images)
        assert headers["X-IGN-Drift"] == ",".join(str(image.drift) for image in images)
        assert headers["X-IGN-Seed"] == "3"
    assert "X-IGN-Drift" not in raw(service, "image/png").headers


def test_npy_is_exactly_numpys(service: Service) -> None:
    content = raw(service, "application/x-npy", n=3).content
    decoded = array(content)
    assert decoded.shape == (3, 1, 8, 8)
    assert decoded.dtype == np.dtype("<f4")
    assert content == npy(decoded)


def test_png_is_compressed_fast(service: Service) -> None:
    data = raw(service, "image/png").content
    start = data.index(b"IDAT") + 4
    assert data[start : start + 2] == b"\x78\x01"  # zlib's header at level 1


# Same seed, same bytes: whatever `n`, batch or neighbours


def pictures(service: Service, **body: Any) -> list[str]:
    return [image["data"] for image in service.images("/generate", body)]


@pytest.mark.parametrize(
    "options", [{}, {"steps": 5}, {"model": "colour"}, {"noise_scale": 0.7, "tolerance": 0.05}]
)
@pytest.mark.parametrize("form", ["png", "npy"])
def test_one_by_one_as_in_sixty_four(service: Service, options: dict[str, Any], form: str) -> None:
    options = options | {"seed": 42, "format": form}
    together = pictures(service, n=64, **options)
    assert len(set(together)) == 64
    assert [pictures(service, offset=i, **options)[0] for i in range(64)] == together
    assert pictures(service, offset=10, n=17, **options) == together[10:27]
    assert pictures(service, n=64, **options) == together
