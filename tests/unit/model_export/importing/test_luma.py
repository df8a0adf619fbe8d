"""Grey networks with `--color luma`, over HTTP: f gets the luma of colour images, and their colours are kept."""

import io
import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model_export import cli
from service.bulk import __main__ as bulk
from tests.contract.data import b64
from tests.contract.harness import Service, serving, settings
from tests.contract.oip import as_binary, infer, rows_of
from tests.helpers.foreign import Network
from tests.helpers.pictures import noise, save

BRIGHTER = 0.1  # of the range, of the network `brighter`


@pytest.fixture(scope="module")
def folder(_quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("luma")
    networks = {
        "same": (Network(["n", 1, "h", "w"]).add("Mul", 1.0), ["--tile", "32"]),
        "brighter": (Network(["n", 1, "h", "w"]).add("Add", BRIGHTER), ["--tile", "32"]),
        "fixed": (Network(["n", 1, 24, 20]).add("Add", BRIGHTER), []),
    }
    for name, (network, words) in networks.items():
        file = network.write(folder / name)
        words = [*words, "--range", "0,1", "--color", "luma", "--name", name, "--models", str(folder / "models")]
        assert cli.main(["import", str(file), *words]) == 0
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with serving(settings(folder / "models", default_model="brighter")) as running:
        yield running


def colours(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Neither black nor white, so that brighter ones are in the range."""
    return (60 + noise(height, width, 3, seed=seed) // 2).astype(np.uint8)


def opened(content: bytes) -> NDArray[np.float64]:
    return np.asarray(Image.open(io.BytesIO(content)), np.float64)


def project(service: Service, *images: NDArray[Any], accept: str = "image/png", **options: Any) -> bytes:
    body = {"images": [b64(save(image)) for image in images]} | options
    response = service.post("/project", body, accept=accept)
    assert response.status_code == 200, response.text
    return response.content


@pytest.mark.parametrize("size", [(5, 9), (32, 32), (70, 45)])
def test_the_identity_gives_the_image_with_its_colours(service: Service, size: tuple[int, int]) -> None:
    image = noise(*size, 3, seed=1)
    assert np.abs(opened(project(service, image, model="same")) - image).max() <= 1


@pytest.mark.parametrize(("model", "size"), [("brighter", (40, 33)), ("fixed", (24, 20))])
def test_f_changes_the_luma_alone(service: Service, model: str, size: tuple[int, int]) -> None:
    image = colours(*size)
    made = project(service, image, model=model)
    before, after = (
        np.asarray(each.convert("YCbCr"), np.float64) for each in (Image.fromarray(image), Image.open(io.BytesIO(made)))
    )
    np.testing.assert_allclose(after[..., 0], before[..., 0] + 255 * BRIGHTER, atol=2)
    np.testing.assert_allclose(after[..., 1:], before[..., 1:], atol=2)


def test_grey_images_are_answered_in_grey(service: Service) -> None:
    grey = noise(20, 30, seed=2) // 2
    for image in (grey, np.dstack([grey] * 3)):  # also if they are stored in colour
        made = opened(project(service, image))
        assert made.shape == grey.shape
        assert np.abs(made - grey - 255 * BRIGHTER).max() <= 1


def test_images_of_one_request_have_their_own_colours(service: Service) -> None:
    images = [noise(20, 30, seed=3) // 2, colours(20, 30, seed=4)]
    answer = json.loads(project(service, *images, accept="application/json"))["images"]
    for made, image in zip(answer, images, strict=True):
        assert np.abs(opened(b64decode(made["data"])) - image - 255 * BRIGHTER).max() <= 1
    sheet = opened(project(service, *images, columns=2, gap=1))
    assert np.abs(sheet[:, :30] - images[0][..., None] - 255 * BRIGHTER).max() <= 1
    assert np.abs(sheet[:, 31:] - images[1] - 255 * BRIGHTER).max() <= 1
    values = np.load(io.BytesIO(project(service, *images, accept="application/x-npy")))
    np.testing.assert_allclose(values[1].transpose(1, 2, 0), images[1] / 255 + BRIGHTER, atol=1e-5)
    pages = Image.open(io.BytesIO(project(service, *images, accept="image/tiff")))
    pages.seek(1)
    assert np.abs(np.asarray(pages, np.float64) - images[1] - 255 * BRIGHTER).max() <= 1


def test_a_mask_strength_and_steps_are_of_the_luma(service: Service) -> None:
    image, mask = colours(30, 40, seed=5), np.zeros((30, 40), np.uint8)
    mask[:, 20:] = 255
    options = {"mask": b64(save(mask)), "strength": 0.5, "steps": 2, "record": [0, 2]}
    (made,) = json.loads(project(service, image, accept="application/json", **options))["images"]
    first, last = (opened(b64decode(each["data"])) for each in made["trajectory"])
    np.testing.assert_array_equal(first, image)
    np.testing.assert_array_equal(last[:, :20], image[:, :20])
    assert np.abs(last[:, 20:] - image[:, 20:] - 255 * BRIGHTER).max() <= 1
    assert made["distance"] == pytest.approx(BRIGHTER, abs=1e-5)
    text = project(service, image, accept="text/event-stream", **options).decode()
    steps = [json.loads(event.split("data: ")[1]) for event in text.split("\n\n") if event.startswith("event: step")]
    np.testing.assert_array_equal(opened(b64decode(steps[-1]["data"])), last)


def test_a_score_and_tensors_are_grey(service: Service) -> None:
    image = colours(30, 40, seed=6)
    (score,) = service.post("/score", {"images": [b64(save(image))]}).json()["images"]
    assert score["distance"] == pytest.approx(BRIGHTER, abs=1e-5)
    rows = np.full((1, 1, 8, 8), 0.5, np.float32)
    made = rows_of(infer(service, *as_binary(rows), path="/v2/models/brighter/infer"))
    np.testing.assert_allclose(made, rows + BRIGHTER, atol=1e-6)


def test_bulk_keeps_colours(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = colours(50, 30, seed=7)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(save(image))
    for name, value in {"MODEL_DIR": folder / "models", "DEFAULT_MODEL": "brighter", "DEVICE": "cpu"}.items():
        monkeypatch.setenv(f"IGN_{name}", str(value))
    assert bulk.main(["project", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    (made,) = (tmp_path / "out").rglob("*.png")
    assert np.abs(opened(made.read_bytes()) - image - 255 * BRIGHTER).max() <= 1


def test_only_grey_networks_get_the_luma(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Network(["n", 3, 8, 8]).add("Sigmoid").write(tmp_path / "net.onnx")
    words = ["--name", "net", "--models", str(tmp_path / "models"), "--color", "luma"]
    assert cli.main(["import", str(file), *words]) == 2
    assert "--color luma" in capsys.readouterr().err
