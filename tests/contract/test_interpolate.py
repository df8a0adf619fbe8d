from typing import Any

import numpy as np
import pytest
from PIL import ImageSequence

from service.api.native.answers import InterpolateAnswer
from service.domain.latents import FloatRow, lerp, slerp
from tests.contract.data import (
    COLOUR,
    GREY,
    b64,
    frames,
    latents,
    npy,
    pixels,
    quantised,
    step_params,
)
from tests.contract.harness import Service, checked, problem
from tests.contract.test_project import LIGHT, PICTURE
from tests.helpers.pictures import opened

PATH = "/latent-interpolate"
POINTS = [{"seed": 1}, {"seed": 2, "index": 3}]
STEPS = 2  # the card's for generation


def interpolated(service: Service, **options: Any) -> InterpolateAnswer:
    return checked(service.post(PATH, {"points": POINTS} | options), InterpolateAnswer)


def single(service: Service, seed: int, index: int = 0, **options: Any) -> str:
    body = {"seed": seed, "offset": index, **options}
    return service.images("/generate", body)[0]["data"]


@pytest.mark.parametrize("model", ["grey", "colour"])
@pytest.mark.parametrize("method", ["slerp", "lerp"])
def test_the_frames_lie_on_the_way_between_the_points(
    service: Service, method: str, model: str
) -> None:
    shape = GREY if model == "grey" else COLOUR
    a = latents(1, shape=shape)[0]
    b = latents(2, 3, shape=shape)[0]
    mix = slerp if method == "slerp" else lerp
    expected = step_params(np.stack([mix(a, b, i / 4) for i in range(5)]), 1)
    found = service.rows(PATH, points=POINTS, method=method, frames=5, steps=1, model=model)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    options = {"points": POINTS, "method": method, "frames": 5, "steps": 1, "model": model}
    animation = opened(service.post(PATH, options, accept="image/webp").content)
    animation.seek(3)
    shown = np.asarray(animation.convert("L" if model == "grey" else "RGB"))
    np.testing.assert_array_equal(shown, quantised(found)[3])


def test_defaults(service: Service) -> None:
    response = service.post(PATH, {"points": POINTS})
    answer = checked(response, InterpolateAnswer)
    assert list(response.json()) == ["model", "request_id", "images", "timing"]
    assert [image.index for image in answer.images] == list(range(9))
    assert [image.t for image in answer.images] == [i / 8 for i in range(9)]
    assert {image.steps for image in answer.images} == {STEPS}
    assert all("row" not in image and "col" not in image for image in response.json()["images"])
    assert "X-IGN-Seed" not in response.headers


@pytest.mark.parametrize("method", ["slerp", "lerp"])
@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("form", ["png", "npy"])
def test_the_ends_are_the_pictures_of_their_seeds(
    service: Service, method: str, steps: int | None, form: str
) -> None:
    images = interpolated(service, method=method, steps=steps, format=form).images
    assert images[0].data == single(service, 1, steps=steps, format=form)
    assert images[-1].data == single(service, 2, 3, steps=steps, format=form)


def test_frames_on_points_are_the_points(service: Service) -> None:
    images = interpolated(service, points=[{"seed": seed} for seed in range(16)], frames=2).images
    assert [image.data for image in images] == [single(service, 0), single(service, 15)]
    last = (
        interpolated(service, points=[{"seed": 2**32 - 1, "index": 2**32 - 1}, {"seed": 0}])
        .images[0]
        .data
    )
    assert last == single(service, 2**32 - 1, 2**32 - 1)
    points = [{"seed": seed} for seed in (5, 6, 7, 8)]
    images = interpolated(service, points=points, frames=10).images
    assert [images[i].data for i in (0, 3, 6, 9)] == [
        single(service, seed) for seed in (5, 6, 7, 8)
    ]


def test_a_loop_comes_back_to_its_first_point(service: Service) -> None:
    images = interpolated(service, loop=True, frames=9).images
    assert len(images) == 9
    assert images[-1].t == 1.0
    assert images[-1].data == images[0].data == single(service, 1)
    assert images[4].data == single(service, 2, 3)
    a = latents(1)[0]
    b = latents(2, 3)[0]
    found = service.rows(PATH, points=POINTS, loop=True, frames=9, steps=1)
    np.testing.assert_allclose(found[6], step_params(slerp(b, a, 0.5)[None], 1)[0], atol=1e-5)
    assert [image.data for image in interpolated(service, loop=True, frames=2).images] == [
        images[0].data
    ] * 2


@pytest.mark.parametrize(("method", "mix"), [("slerp", slerp), ("lerp", lerp)])
def test_a_grid_is_its_corners_and_what_lies_between(
    service: Service, method: str, mix: Any
) -> None:
    body = {
        "points": [{"seed": seed} for seed in (1, 2, 3, 4)],
        "grid": {"rows": 3, "cols": 5},
        "method": method,
    }
    response = service.post(PATH, body)
    images = checked(response, InterpolateAnswer).images
    assert [(image.row, image.col) for image in images] == [
        (r, c) for r in range(3) for c in range(5)
    ]
    assert all("t" not in image for image in response.json()["images"])
    assert [images[i].data for i in (0, 4, 10, 14)] == [
        single(service, seed) for seed in (1, 2, 3, 4)
    ]
    a, b, c, d = (latents(seed)[0] for seed in (1, 2, 3, 4))

    def mixed(row: int, col: int) -> FloatRow:  # along columns first, then rows
        return mix(mix(a, b, col / 4), mix(c, d, col / 4), row / 2)

    expected = step_params(np.stack([mixed(r, col) for r in range(3) for col in range(5)]), STEPS)
    np.testing.assert_allclose(service.rows(PATH, **body), expected, atol=1e-5)


def test_an_image_point_is_the_projection_of_that_image(service: Service) -> None:
    points = [{"image": b64(PICTURE)}, {"image": b64(LIGHT)}]
    body = {"images": [b64(PICTURE)], "steps": STEPS}
    projection = service.images("/project", body)[0]["data"]
    assert [image.data for image in interpolated(service, points=points, frames=2).images] == [
        projection
    ] * 2


def test_a_latent_point_is_that_latent(service: Service) -> None:
    points = [
        {"latent": b64(npy(latents(1)[0]))},
        {"latent": b64(npy(np.asfortranarray(latents(2)[0]).astype(">f4")))},
    ]
    images = interpolated(service, points=points).images
    assert images[0].data == single(service, 1)
    assert images[-1].data == single(service, 2)


def test_an_arc_beyond_the_bound_is_the_callers_fault(service: Service) -> None:
    """The arc between two almost opposite latents is much longer than they are."""
    first = np.full((1, 8, 8), 1e6, np.float32)
    second = -first
    second[0, 0, 0] *= np.float32(0.99)  # an angle of 0.0013 less than π
    points = [{"latent": b64(npy(point))} for point in (first, second)]
    problem(service.post(PATH, {"points": points}), 422, "invalid_value", "points")
    interpolated(service, points=points, method="lerp")


@pytest.mark.parametrize("accept", ["image/png", "image/jpeg"])
def test_raw_pictures_of_a_path_are_one_strip(service: Service, accept: str) -> None:
    response = service.post(PATH, {"points": POINTS, "frames": 5}, accept=accept)
    assert response.headers["Content-Type"] == accept
    strip = pixels(response.content)
    assert strip.shape == (8, 40)
    if accept == "image/png":
        np.testing.assert_array_equal(
            strip,
            np.concatenate(list(quantised(service.rows(PATH, points=POINTS, frames=5))), axis=1),
        )
    assert len(response.headers["X-IGN-Distance"].split(",")) == 5


@pytest.mark.parametrize("accept", ["image/png", "image/webp", "image/gif, image/png"])
def test_raw_pictures_of_a_grid_are_its_sheet(service: Service, accept: str) -> None:
    body = {"points": [{"seed": s} for s in range(4)], "grid": {"rows": 2, "cols": 3}}
    response = service.post(PATH, body, accept=accept)
    assert len(frames(response.content)) == 1
    cells = quantised(service.rows(PATH, **body))
    expected = np.concatenate([np.concatenate(list(cells[i : i + 3]), axis=1) for i in (0, 3)])
    np.testing.assert_array_equal(pixels(response.content, "L"), expected)
    for animation in ("image/gif", "image/apng"):
        problem(service.post(PATH, body, accept=animation), 406, "not_acceptable")


@pytest.mark.parametrize("accept", ["image/webp", "image/gif", "image/apng"])
@pytest.mark.parametrize("fps", [1, 12, 50])
def test_animations(service: Service, accept: str, fps: int) -> None:
    model = "grey" if accept == "image/gif" else "colour"  # GIF has 256 colours
    body = {"points": POINTS, "frames": 7, "fps": fps, "model": model}
    response = service.post(PATH, body, accept=accept)
    assert response.headers["Content-Type"] == accept
    shown = frames(response.content, "L" if model == "grey" else "RGB")
    np.testing.assert_array_equal(
        shown, quantised(service.rows(PATH, points=POINTS, frames=7, model=model))
    )
    tick = 10 if accept == "image/gif" else 1
    assert abs(duration(response.content) - 7 * 1000 / fps) <= tick
    assert opened(response.content).info["loop"] == 0


def duration(data: bytes) -> float:
    total = 0.0
    for frame in ImageSequence.Iterator(opened(data)):
        frame.load()
        total += float(frame.info["duration"])
    return total


def test_the_longest_path_and_the_largest_grid(service: Service) -> None:
    assert len(interpolated(service, frames=256).images) == 256
    grid = {"rows": 16, "cols": 16}
    corners = [{"seed": s} for s in range(4)]
    assert len(interpolated(service, points=corners, grid=grid).images) == 256
