"""Imported networks over HTTP, beside plain onnxruntime (or torch) with Pillow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_export import cli
from service.domain.latents import NoiseSource
from tests.contract.harness import Service, serving, settings
from tests.contract.oip import as_binary, infer, rows_of
from tests.helpers.foreign import autoencoder, dncnn, fixed_batch, keras, plain
from tests.helpers.foreign_torch import Net
from tests.helpers.pictures import noise
from tests.unit.model_export.importing.test_any_size import project

SIZES = {"dncnn": (20, 28), "ae": (32, 32, 3), "keras": (16, 24, 3), "one": (8, 8), "ign": (12, 8)}


def run(path: Path, values: NDArray[Any]) -> Any:
    """What plain onnxruntime makes of a row."""
    return plain(path, values.astype(np.float32)[None])[0]


@pytest.fixture(scope="module")
def folder(_quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each of the files, and a model directory with all that they became, by one command each."""
    folder = tmp_path_factory.mktemp("foreign")
    dncnn().write(folder / "dncnn")
    autoencoder().write(folder / "ae")
    keras().write(folder / "keras")
    fixed_batch(opens=False).write(folder / "one")
    torch.manual_seed(1)
    network = Net()
    network(3 * torch.randn(20, 1, 12, 8))
    old = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    parallel = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save(
        {"step": 7, "model": old, "ema": parallel | {"module.loss": torch.ones(1)}}, folder / "ign"
    )
    module = Path(__file__).parents[3] / "helpers" / "foreign_torch.py"
    options = {
        "dncnn": "--residual --range 0,1",
        "ae": "",
        "keras": "--bgr",
        "one": "",
        "ign": f"--module {module}:Net --shape 1,12,8 --noise gaussian",
    }
    for name, words in options.items():
        command = f"import {folder / name} --name {name} --models {folder / 'models'} {words}"
        assert cli.main(command.split()) == 0
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with serving(settings(folder / "models", default_model="ign")) as running:
        yield running


def ign(folder: Path, rows: NDArray[Any]) -> NDArray[Any]:
    network = Net().eval()
    saved = torch.load(folder / "ign", weights_only=True)["ema"]
    network.load_state_dict(
        {name.removeprefix("module."): saved[name] for name in saved if "loss" not in name}
    )
    with torch.inference_mode():
        result: NDArray[Any] = network(torch.from_numpy(rows.astype(np.float32))).numpy()
    return result


def expected(folder: Path, name: str, x: NDArray[np.float64]) -> Any:
    """The levels 0…255, (H, W) or (H, W, C), that each network makes of an image, without this
    project.
    """
    file = folder / name
    if name == "dncnn":
        return 255 * (x / 255 - run(file, x[None] / 255)[0]).clip(0, 1)
    if name == "ae":
        return 255 * run(file, x.transpose(2, 0, 1) / 255).transpose(1, 2, 0)
    if name == "keras":
        return run(file, x[:, :, ::-1])[:, :, ::-1]
    rows = x[None, None] / 127.5 - 1
    y = ign(folder, rows) if name == "ign" else run(file, rows[0])[None]
    return 127.5 * (y[0, 0] + 1)


@pytest.mark.parametrize("name", SIZES)
def test_project_is_within_a_level_of_plain_onnxruntime(
    service: Service, folder: Path, name: str
) -> None:
    image = noise(*SIZES[name], seed=4)
    made = project(service, image, model=name, invert="false")
    assert np.abs(made - expected(folder, name, image.astype(np.float64))).max() <= 1


@pytest.mark.parametrize("name", SIZES)
def test_infer_gives_the_bits_of_onnxruntime(service: Service, folder: Path, name: str) -> None:
    card = service.get(f"/models/{name}").json()
    low, high = card["range"]
    rows = np.random.default_rng(1).uniform(low, high, (3, *card["shape"])).astype(np.float32)
    model = folder / "models" / name / "1" / "model.onnx"
    answers = rows_of(infer(service, *as_binary(rows), path=f"/v2/models/{name}/infer"))
    np.testing.assert_array_equal(answers, np.stack([run(model, row) for row in rows]))


def test_generate_is_what_torch_makes_of_the_noise(service: Service, folder: Path) -> None:
    made = service.rows("/generate", model="ign", seed=3, n=4)
    z = NoiseSource((1, 12, 8)).rows(3, 0, 4)
    np.testing.assert_allclose(made, ign(folder, z), atol=1e-5)
    assert service.post("/generate", {"model": "dncnn"}).json()["code"] == "no_noise"
