"""Networks that take images of any size, or the luma of images, over HTTP, beside plain onnxruntime
on the whole.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model_export import cli
from service.artifact.card import from_metadata
from service.artifact.onnx_file import read_metadata
from service.domain.latents import NoiseSource
from tests.contract.data import array, b64, pixels, unb64
from tests.contract.harness import Service, problem, send, serving, settings
from tests.contract.oip import as_binary, infer, rows_of
from tests.helpers.foreign import Network, plain
from tests.helpers.pictures import noise, save

BRIGHTER = 25.5  # levels


def denoiser(channels: int) -> Network:
    network = Network(["n", channels, "h", "w"])
    return network.conv(channels, 8).add("Relu").conv(8, 8).add("Relu").conv(8, channels, gain=0.3)


def reducing() -> Network:
    """Reduces images by 8 inside, so their sides are multiples of 8."""
    network = Network(["n", 3, "h", "w"]).conv(3, 8).add("Relu")
    network.add("MaxPool", kernel_shape=[8, 8], strides=[8, 8]).conv(8, 8)
    return (
        network.add("Resize", "", np.array([1, 1, 8, 8], np.float32), mode="nearest")
        .conv(8, 3)
        .add("Sigmoid")
    )


@pytest.fixture(scope="module")
def folder(_quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any")
    tiles = "--range 0,1 --tile 32"
    luma = "--range 0,1 --color luma"
    networks = {
        "grey": (denoiser(1), f"--residual {tiles}"),
        "colour": (denoiser(3), f"--residual {tiles} --noise gaussian"),
        "reducing": (reducing(), ""),
        "same": (Network(["n", 1, "h", "w"]).add("Mul", 1.0), luma),
        "brighter": (
            Network(["n", 1, "h", "w"]).add("Add", BRIGHTER / 255),
            f"{luma} --tile 32",
        ),
        "fixed": (Network(["n", 1, 24, 20]).add("Add", BRIGHTER / 255), luma),
    }
    for name, (network, words) in networks.items():
        file = network.write(folder / name)
        command = f"import {file} --name {name} --models {folder / 'models'} {words}"
        assert cli.main(command.split()) == 0
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    chosen = settings(folder / "models", default_model="grey", max_pixels=200_000)
    with serving(chosen) as running:
        yield running


def whole(
    folder: Path, name: str, x: NDArray[Any], tile: tuple[int, int] = (0, 0)
) -> NDArray[np.float64]:
    """f of a whole image, levels (H, W) or (H, W, 3), by plain onnxruntime; it is mirrored to at
    least a ``tile``.
    """
    rows = np.moveaxis(np.atleast_3d(x), 2, 0)[None].astype(np.float32) / 255
    height, width = x.shape[:2]
    multiple = 8 if name == "reducing" else 1
    beyond = [
        (0, max(least - each, -each % multiple))
        for each, least in zip((height, width), tile, strict=True)
    ]
    rows = np.pad(rows, [(0, 0), (0, 0), *beyond], mode="symmetric")
    y = plain(folder / name, rows)
    y = y if name == "reducing" else rows - y
    made: NDArray[np.float64] = 255 * np.moveaxis(y[0, :, :height, :width], 0, 2).astype(
        np.float64
    ).clip(0, 1)
    return made.reshape(x.shape)


def project(service: Service, image: NDArray[Any], **options: Any) -> NDArray[np.float64]:
    png = {"Accept": "image/png"}
    response = send(service, "/project", save(image), "image/png", params=options, headers=png)
    assert response.status_code == 200, response.text
    return pixels(response.content).astype(np.float64)


@pytest.mark.parametrize("size", [(32, 32), (33, 90), (150, 57), (200, 256)])
@pytest.mark.parametrize("name", ["grey", "colour"])
def test_tiles_give_what_the_whole_image_gives(
    service: Service, folder: Path, name: str, size: tuple[int, int]
) -> None:
    image = noise(*size, *([3] if name == "colour" else []), seed=1)
    assert np.abs(project(service, image, model=name) - whole(folder, name, image)).max() <= 1


@pytest.mark.parametrize("name", ["grey", "colour"])
@pytest.mark.parametrize(
    ("size", "tile"),
    [
        ((1, 1), (8, 8)),
        ((8, 7), (8, 8)),
        ((9, 3), (16, 8)),
        ((16, 16), (16, 16)),
        ((5, 17), (8, 24)),
        ((25, 24), (32, 24)),
        ((31, 100), (32, 32)),
        ((100, 3), (32, 8)),
    ],
)
def test_the_smallest_tile_that_holds_an_image_is_used(
    service: Service, folder: Path, name: str, size: tuple[int, int], tile: tuple[int, int]
) -> None:
    image = noise(*size, *([3] if name == "colour" else []), seed=12)
    assert np.abs(project(service, image, model=name) - whole(folder, name, image, tile)).max() <= 1


def test_images_of_one_request_use_tiles_of_their_own(service: Service, folder: Path) -> None:
    images = [
        noise(5, 6, seed=13),
        noise(40, 70, seed=14),
        noise(12, 3, seed=15),
        noise(4, 4, seed=16),
    ]
    body = {"images": [b64(save(image)) for image in images], "steps": 2, "score": True}
    answer = service.images("/project", body)
    for made, image, tile in zip(answer, images, ((8, 8), (0, 0), (16, 8), (8, 8)), strict=True):
        expected = whole(folder, "grey", whole(folder, "grey", image, tile), tile)
        assert np.abs(pixels(unb64(made["data"])) - expected).max() <= 1


def test_a_deep_network_gets_the_tiles_that_are_asked_for(tmp_path: Path) -> None:
    """What it sees at the edge of its reach is too little to notice in a single pixel."""
    network = Network(["n", 1, "h", "w"]).conv(1, 8, gain=1.4).add("Relu")
    for _ in range(15):
        network.conv(8, 8, gain=1.4).add("Relu")
    file = network.conv(8, 1, gain=0.02).write(tmp_path / "deep.onnx")
    words = f"--name deep --models {tmp_path} --residual --range 0,1 --tile 64"
    assert cli.main(["import", str(file), *words.split()]) == 0
    card = from_metadata(read_metadata((tmp_path / "deep" / "1" / "model.onnx").read_bytes()))
    assert card.tiles is not None
    assert card.tiles.overlap <= 21


def test_tiles_begin_where_a_network_that_reduces_allows(service: Service, folder: Path) -> None:
    image = noise(301, 203, 3, seed=3)
    difference = np.abs(
        project(service, image, model="reducing") - whole(folder, "reducing", image)
    )
    assert difference.max() <= 1


def test_steps_are_passes_over_the_whole_image(service: Service, folder: Path) -> None:
    image = noise(70, 61, seed=4)
    body = {
        "images": [b64(save(image))],
        "steps": 3,
        "record": [0, 1, 3],
        "score": True,
        "format": "npy",
    }
    (made,) = service.images("/project", body)
    steps = [array(unb64(each["data"]))[0] for each in made["trajectory"]]
    assert (made["width"], made["height"], made["steps"]) == (61, 70, 3)
    np.testing.assert_allclose(steps[0] * 255, image, atol=1e-4)
    x = image.astype(np.float64)
    for number in range(3):
        before = x
        x = whole(folder, "grey", x)
        if number == 0:
            np.testing.assert_allclose(steps[1] * 255, x, atol=1e-2)
            assert made["distance"] == pytest.approx(np.abs(x - before).mean() / 255, abs=1e-5)
    np.testing.assert_allclose(steps[2] * 255, x, atol=1e-2)
    assert made["drift"] == pytest.approx(
        np.abs(whole(folder, "grey", x) - x).mean() / 255, abs=1e-5
    )


def test_a_mask_and_strength_are_of_the_image(service: Service, folder: Path) -> None:
    image = noise(40, 90, seed=5)
    mask = np.zeros((40, 90), np.uint8)
    mask[:, 50:] = 255
    body = {"images": [b64(save(image))], "mask": b64(save(mask)), "strength": 0.5}
    made = pixels(service.post("/project", body, accept="image/png").content)
    np.testing.assert_array_equal(made[:, :50], image[:, :50])
    expected = (image + whole(folder, "grey", image)) / 2
    assert np.abs(made - expected)[:, 50:].max() <= 1


def test_images_of_several_sizes(service: Service, folder: Path) -> None:
    images = [noise(20, 90, seed=6), noise(64, 40, seed=7)]
    body = {"images": [b64(save(image)) for image in images]}
    answer = service.images("/project", body)
    assert [(each["width"], each["height"]) for each in answer] == [(90, 20), (40, 64)]
    sheet = pixels(service.post("/project", body, accept="image/png").content)
    assert sheet.shape == (64, 180)
    assert np.abs(sheet[:, 90:130] - whole(folder, "grey", images[1])).max() <= 1
    problem(
        service.post("/project", body, accept="application/x-npy"), 422, "invalid_value", "image"
    )


def test_a_stream_counts_tiles(service: Service, folder: Path) -> None:
    image = noise(150, 57, seed=8)
    body = {"images": [b64(save(image))], "steps": 2}
    text = service.post("/project", body, accept="text/event-stream").text
    events = [event.split("\ndata: ") for event in text.removesuffix("\n\n").split("\n\n")]
    progress = [json.loads(data) for name, data in events if name == "event: progress"]
    assert [name for name, _ in events][-2:] == ["event: step", "event: done"]
    assert [each["rows_done"] for each in progress] == sorted(
        each["rows_done"] for each in progress
    )
    assert (progress[-1]["rows_done"], progress[-1]["steps_done"], progress[-1]["steps"]) == (
        progress[-1]["rows"],
        1,
        2,
    )
    step = json.loads(events[-2][1])
    expected = whole(folder, "grey", whole(folder, "grey", image.astype(np.float64)))
    assert np.abs(pixels(unb64(step["data"])) - expected).max() <= 1


def test_a_score_says_where(service: Service, folder: Path) -> None:
    image = np.full((100, 140), 128, np.uint8)
    image[60:80, 90:110] = noise(20, 20, seed=9)
    (score,) = service.images("/score", {"images": [b64(save(image))]})
    box = score["worst"]
    assert box["x"] <= 95 <= box["x"] + box["width"]
    assert box["y"] <= 65 <= box["y"] + box["height"]
    heat = service.post("/score", {"images": [b64(save(image))]}, accept="image/png")
    assert pixels(heat.content).shape == (100, 140)


def test_infer_takes_any_size_as_a_row(service: Service, folder: Path) -> None:
    assert service.get("/v2/models/grey").json()["inputs"][0]["shape"] == [-1, 1, -1, -1]
    rows = np.random.default_rng(1).random((2, 1, 45, 130)).astype(np.float32)
    made = rows_of(infer(service, *as_binary(rows), path="/v2/models/grey/infer"))
    expected = (rows - plain(folder / "grey", rows)).clip(0, 1)
    np.testing.assert_allclose(made, expected, atol=1e-6)
    for shape in ((1, 3, 8, 8), (1, 1, 600, 600)):
        assert (
            infer(
                service, *as_binary(np.zeros(shape, np.float32)), path="/v2/models/grey/infer"
            ).status_code
            == 400
        )


def test_noise_of_any_size(service: Service, folder: Path) -> None:
    body = {"model": "colour", "seed": 3, "n": 2, "width": 50, "height": 40}
    made = service.rows("/generate", **body)
    z = NoiseSource((3, 40, 50)).rows(3, 0, 2)
    expected = (z - plain(folder / "colour", z)).clip(0, 1)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    assert service.images("/generate", {"model": "colour", "seed": 3})[0]["width"] == 32
    problem(
        service.post("/generate", body | {"n": 64, "width": 400}), 422, "image_too_large", "width"
    )


def colours(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    # brighter ones are in the range, too
    return (60 + noise(height, width, 3, seed=seed) // 2).astype(np.uint8)


@pytest.mark.parametrize("size", [(5, 9), (32, 32), (170, 45)])
def test_the_identity_gives_the_image_with_its_colours(
    service: Service, size: tuple[int, int]
) -> None:
    image = noise(*size, 3, seed=1)
    assert np.abs(project(service, image, model="same") - image).max() <= 1


@pytest.mark.parametrize(("model", "size"), [("brighter", (40, 33)), ("fixed", (24, 20))])
def test_f_changes_the_luma_alone(service: Service, model: str, size: tuple[int, int]) -> None:
    image = colours(*size)
    made = project(service, image, model=model).astype(np.uint8)
    before, after = (
        np.asarray(Image.fromarray(each).convert("YCbCr"), np.float64) for each in (image, made)
    )
    np.testing.assert_allclose(
        after - before, np.broadcast_to([BRIGHTER, 0, 0], image.shape), atol=2
    )


def test_grey_images_are_answered_in_grey(service: Service) -> None:
    grey = noise(20, 30, seed=2) // 2
    for image in (grey, np.dstack([grey] * 3)):  # also if they are stored in colour
        np.testing.assert_allclose(
            project(service, image, model="brighter"), grey + BRIGHTER, atol=1
        )


def test_images_of_one_request_have_their_own_colours(service: Service) -> None:
    images = [noise(20, 30, seed=3) // 2, colours(20, 30, seed=4)]
    body = {"images": [b64(save(image)) for image in images], "model": "brighter"}
    for made, image in zip(service.images("/project", body), images, strict=True):
        np.testing.assert_allclose(pixels(unb64(made["data"])), image + BRIGHTER, atol=1)
    sheet = pixels(
        service.post("/project", body | {"columns": 2, "gap": 1}, accept="image/png").content
    )
    np.testing.assert_allclose(sheet[:, :30], np.dstack([images[0]] * 3) + BRIGHTER, atol=1)
    np.testing.assert_allclose(sheet[:, 31:], images[1] + BRIGHTER, atol=1)


def test_a_mask_strength_and_steps_are_of_the_luma(service: Service) -> None:
    image = colours(30, 40, seed=5)
    mask = np.zeros((30, 40), np.uint8)
    mask[:, 20:] = 255
    body = {
        "images": [b64(save(image))],
        "mask": b64(save(mask)),
        "strength": 0.5,
        "steps": 2,
        "record": [0, 2],
    }
    body["model"] = "brighter"
    (made,) = service.images("/project", body)
    first, last = (pixels(unb64(each["data"])) for each in made["trajectory"])
    np.testing.assert_array_equal(first, image)
    np.testing.assert_array_equal(last[:, :20], image[:, :20])
    np.testing.assert_allclose(last[:, 20:], image[:, 20:] + BRIGHTER, atol=1)
    (score,) = service.images("/score", {"images": body["images"], "model": "brighter"})
    assert made["distance"] == score["distance"] == pytest.approx(BRIGHTER / 255, abs=1e-5)
