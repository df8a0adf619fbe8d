from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.native.score import ScoreAnswer
from tests.contract.data import b64, pixels, step_params
from tests.contract.harness import Service, checked, problem, send, serving, settings
from tests.contract.test_project import PICTURE, prepared
from tests.helpers.onnx_models import write_model
from tests.helpers.pictures import noise, save

OTHER = save(np.pad(noise(6, 6, seed=2), 1))
WIDE = save(noise(8, 14, seed=3))


def expected(picture: bytes) -> tuple[float, float]:
    """(distance, drift) by the numpy network."""
    x = prepared(pixels(picture))
    y = step_params(x, 1)
    z = step_params(x, 2)
    return float(np.abs(y - x).mean()), float(np.abs(z - y).mean())


def scored(service: Service, *images: bytes, **options: Any) -> ScoreAnswer:
    return checked(
        service.post("/score", {"images": [b64(image) for image in images], **options}), ScoreAnswer
    )


def test_scores_in_the_order_the_pictures_came(service: Service) -> None:
    response = service.post("/score", {"images": [b64(PICTURE), b64(OTHER)]})
    answer = checked(response, ScoreAnswer)
    assert list(response.json()) == ["model", "request_id", "images", "timing"]
    assert [image.index for image in answer.images] == [0, 1]
    for image, picture in zip(answer.images, (PICTURE, OTHER), strict=True):
        assert (image.distance, image.drift) == pytest.approx(expected(picture), abs=2e-6)
        # the card's quantiles are 0.00 … 1.00
        assert image.percentile == pytest.approx(100 * image.distance, abs=1e-3)
        assert image.in_distribution


@pytest.mark.parametrize(
    "options", [{}, {"invert": False}, {"resize": "stretch"}, {"resize": "crop"}]
)
def test_pictures_are_prepared_as_for_projection(options: dict[str, Any], service: Service) -> None:
    [score] = scored(service, WIDE, **options).images
    body = {"images": [b64(WIDE)], "steps": 1, "score": True, **options}
    projected = service.images("/project", body)[0]
    assert (score.distance, score.drift) == (projected["distance"], projected["drift"])
    query = {name: str(value).lower() for name, value in options.items()}
    raw = send(service, "/score", WIDE, "image/png", params=query)
    form = service.post("/score", files={"image": ("x.png", WIDE, "image/png")}, data=query)
    assert checked(raw, ScoreAnswer).images == checked(form, ScoreAnswer).images == [score]
    assert (scored(service, WIDE).images == [score]) == ("resize" not in options)


def test_what_lies_beyond_the_held_out_pictures(tmp_path: Path) -> None:
    write_model(tmp_path, "near", "1", distance_quantiles=tuple(i / 1e4 for i in range(101)))
    write_model(tmp_path, "unmeasured", "1", distance_quantiles=None)
    with serving(settings(tmp_path, default_model="near")) as service:
        [far] = scored(service, PICTURE).images
        assert (far.percentile, far.in_distribution) == (100.0, False)
        [unknown] = scored(service, PICTURE, model="unmeasured").images
        assert (unknown.percentile, unknown.in_distribution) == (None, None)
        assert unknown.distance == far.distance


def changes(picture: bytes) -> Any:
    x = prepared(pixels(picture))
    return np.abs(step_params(x, 1) - x)[0, 0]


def test_the_worst_box_is_the_square_that_changes_most(service: Service) -> None:
    for image, picture in zip(
        scored(service, PICTURE, OTHER).images, (PICTURE, OTHER), strict=True
    ):
        change = changes(picture)
        box = image.worst
        means = {
            (x, y): float(change[y : y + 2, x : x + 2].mean()) for x in range(7) for y in range(7)
        }
        assert (box.width, box.height) == (2, 2)
        assert box.distance == pytest.approx(max(means.values()), abs=2e-6)
        assert means[box.x, box.y] == pytest.approx(box.distance, abs=2e-6)


@pytest.mark.parametrize("model", ["grey", "colour"])
def test_a_heat_map_shows_where_an_image_changes(service: Service, model: str) -> None:
    heat = service.post("/score", {"images": [b64(PICTURE)], "model": model}, accept="image/png")
    [score] = scored(service, PICTURE, model=model).images
    assert heat.headers["X-IGN-Distance"] == str(score.distance)
    found = pixels(heat.content)
    if model == "grey":
        # the card's quantiles are 0.00 … 1.00
        expected = np.clip(np.rint(changes(PICTURE) / (8 * 0.99) * 255), 0, 255)
        assert np.abs(found.astype(int) - expected).max() <= 1
    sheet = service.post(
        "/score", {"images": [b64(PICTURE), b64(OTHER)], "model": model}, accept="image/png"
    )
    assert pixels(sheet.content)[:, : found.shape[1]].tolist() == found.tolist()


@pytest.mark.parametrize(
    "accept", ["image/webp", "image/jpeg", "application/x-npy", "text/event-stream"]
)
def test_there_are_no_other_pictures_in_the_answer(accept: str, service: Service) -> None:
    problem(
        service.post("/score", {"images": [b64(PICTURE)]}, accept=accept), 406, "not_acceptable"
    )


def test_pictures_are_in_distribution_up_to_the_99th_percentile(
    service: Service, tmp_path: Path
) -> None:
    d = scored(service, PICTURE).images[0].distance
    write_model(tmp_path, "below", "1", distance_quantiles=(*([0.0] * 98), d - 0.01, d + 0.01, 1.0))
    write_model(tmp_path, "above", "1", distance_quantiles=(*([0.0] * 99), d - 0.01, d + 0.01))
    with serving(settings(tmp_path, default_model="below")) as other:
        [below] = scored(other, PICTURE).images
        [above] = scored(other, PICTURE, model="above").images
    assert (below.percentile, above.percentile) == pytest.approx((98.5, 99.5), abs=0.01)
    assert (below.in_distribution, above.in_distribution) == (True, False)
