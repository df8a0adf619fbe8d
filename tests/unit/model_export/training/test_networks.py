import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import Conv2d, functional
from torch.nn.functional import avg_pool2d, interpolate

from model_export.data.datasets import Dataset
from model_export.errors import UserError
from model_export.evaluation.evaluate import evaluate
from model_export.export.artifact import Artifact, publish, read_all, with_fields
from model_export.export.export import export
from model_export.export.verify import verify
from model_export.report.model_card import write_page
from model_export.training.blocks import Blocks
from model_export.training.checkpoint import load_run
from model_export.training.losses import lost_marks
from model_export.training.network import Autoencoder, NetworkConfig
from model_export.training.presets import PRESETS
from model_export.training.restorer import (
    Restorer,
    normalised,
    space_to_depth_convolution,
)
from model_export.training.stages import restoring_stages
from service.artifact.card import from_metadata
from tests.unit.model_export.conftest import seeded
from tests.unit.model_export.training.test_train import run

SMALL = {"widths": (8, 16), "bottleneck": 12}


def autoencoder(**changes: Any) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(NetworkConfig(**{"size": 8, "channels": 1, **SMALL, **changes}))


@pytest.mark.parametrize("size", [8, 11, 14, 15])
def test_everything_passes_the_bottleneck(size: int) -> None:
    f = autoencoder(size=size)
    x = torch.randn(3, 1, size, size)
    assert f.encoder(x).shape == (3, SMALL["bottleneck"], 1, 1)
    f.encoder.register_forward_hook(lambda _, __, code: torch.zeros_like(code))
    y = f(x)
    assert y.shape == x.shape
    assert y.abs().max() <= 1.0
    # with the code gone nothing of the input is left: no skip connection
    assert torch.equal(y[0], y[1])
    assert torch.equal(y[0], y[2])


@pytest.mark.parametrize("size", [8, 15, 28])
def test_the_bottleneck_computes_the_convolutions_it_exports(size: int) -> None:
    f = autoencoder(size=size)
    inwards = f.encoder[-2]
    outwards = f.decoder[0]
    assert isinstance(inwards, nn.Conv2d)
    assert isinstance(outwards, nn.ConvTranspose2d)
    x = torch.randn(3, 16, *inwards.kernel_size)
    torch.testing.assert_close(inwards(x), nn.Conv2d.forward(inwards, x))
    code = torch.randn(3, 12, 1, 1)
    torch.testing.assert_close(outwards(code), nn.ConvTranspose2d.forward(outwards, code))


CONFIG = NetworkConfig(size=28, channels=1, widths=(8, 16), bottleneck=32, blocks=2)
LATENTS = torch.randn((64, 1, 28, 28), generator=seeded(0))
ROWS = {
    "latents": LATENTS,
    "noise": 10 * LATENTS,
    "pictures": (6 * avg_pool2d(LATENTS, 5, 1, 2) - 1).clamp(-1, 1),
}


@pytest.fixture(scope="module")
def exact() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def blocks(exact: Autoencoder) -> Blocks:
    assert exact.blocks is not None
    for parameter in exact.blocks.draw.parameters():
        parameter.mul_(2)  # drawings that need to be moved to their readings
    exact.blocks.fitted.fill_(1)
    return exact.blocks


@pytest.mark.parametrize("x", ROWS.values(), ids=ROWS)
def test_f_of_f_is_f_in_every_bit_also_through_a_file(
    exact: Autoencoder, blocks: Blocks, x: Tensor
) -> None:
    y = exact(x)
    assert y.abs().max() <= 1
    assert torch.equal(exact(y), y)
    assert torch.equal(exact(((y + 1) * 127.5).round() / 127.5 - 1), y)
    assert torch.equal(exact(y + 0.01 * LATENTS.clamp(-3, 3)), y)
    assert not torch.equal(y, exact(LATENTS.flip(0)))
    assert (blocks.margin(y, y) > 0.3).any()


@pytest.mark.parametrize("name", ["latents", "pictures"])
def test_pictures_with_the_means_of_a_reading_are_drawn_anew(
    exact: Autoencoder, blocks: Blocks, name: str
) -> None:
    x = ROWS[name].clamp(-0.8, 0.8)
    reading = blocks.read(x)
    forged = x + interpolate((reading.round() - reading) / 4, scale_factor=2.0)
    y = exact(forged)
    assert not (y == forged).flatten(1).all(1).any()
    torch.testing.assert_close(blocks.read(y).round(), blocks.read(forged).round())


def test_a_picture_in_black_and_white_alone_does_not_pass_for_one_of_f(blocks: Blocks) -> None:
    assert (blocks.own(blocks.read(ROWS["pictures"].sign())) < 0).all()


def test_until_they_are_fitted_the_blocks_return_the_picture_of_the_autoencoder() -> None:
    blocks = Blocks(3, 4)
    x = torch.rand(2, 3, 8, 8)
    y = torch.rand(2, 3, 8, 8)
    assert torch.equal(blocks(x, y), y)
    blocks.fit(torch.rand(9, 3, 8, 8) * 2 - 1, 3, 4, seeded(0))
    assert torch.equal(blocks(x, y), blocks(blocks(x, y), x))


def test_gradients_pass_the_blocks_as_if_nothing_were_rounded(blocks: Blocks) -> None:
    exact = Autoencoder(CONFIG)
    exact.blocks = blocks
    torch.autograd.backward(exact(LATENTS).square().sum())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in exact.decoder.parameters())


LEVEL = 1 / 127.5
PRESET = dataclasses.replace(
    PRESETS["scans"],
    network=NetworkConfig(size=16, channels=1, widths=(8, 8), bottleneck=0, full=8),
    stages=tuple(dataclasses.replace(stage, warmup=2) for stage in restoring_stages(8, 8)),
    batch=8,
    checkpoint_every=16,
    tile=64,
    margin=0,
    overlap=4,
    name="pages",
)


@pytest.fixture
def network() -> Restorer:
    torch.manual_seed(0)
    return Restorer((4, 8, 8), 4).eval()


@pytest.fixture
def pairs() -> Dataset:
    """White pictures with a bar; the damaged ones are grey."""
    clean = torch.full((24, 1, 16, 16), 255, dtype=torch.uint8)
    clean[:, :, 4:8] = 0
    damaged = (clean * 0.6).to(torch.uint8)
    return Dataset(
        name="pairs.npz",
        sha256="0" * 64,
        licence="none",
        train=clean,
        held_out=clean,
        damaged=damaged,
    )


def test_a_normalised_page_is_the_same_on_paper_of_any_brightness_with_ink_of_any() -> None:
    page = torch.full((1, 1, 64, 64), 1.0)
    page[..., 20:28, 8:56] = -1.0  # a stroke, wide for type of 62 pixels
    inked = torch.ones_like(page)
    torch.testing.assert_close(normalised(page), (page, inked))
    torch.testing.assert_close(normalised((page + 1.0) * 0.3 - 1.0), (page, inked))
    faint = (page + 1.0) * 0.15 + 0.7  # 217 of 255
    torch.testing.assert_close(normalised(faint)[0], page, rtol=0.0, atol=0.6)
    # What is much darker than the paper beside it is no shadow.
    wide = torch.full((1, 1, 64, 320), 1.0)
    wide[..., :128] = -0.8
    paper, _ = normalised(wide)
    assert paper[..., 8:96].max() < -0.3
    assert paper[..., 160:].min() > 0.99


def test_paper_without_ink_becomes_white_though_it_has_grain() -> None:
    paper = torch.linspace(-0.5, 0.5, 192) + 0.1 * torch.randn(1, 1, 192, 192)
    network = Restorer((8, 16), 4).eval()
    assert network(paper).min().item() == pytest.approx(1.0)
    # a stroke as dark as faint print is ink
    paper[..., 90:96, 60:120] -= 0.5
    assert network(paper)[..., 91:95, 64:116].max() < 0.9


def test_each_lost_part_of_the_ink_costs_the_same() -> None:
    x = torch.full((1, 1, 32, 32), 1.0)
    x[..., 4:20, 4:20] = -1.0
    x[..., 24:26, 24:26] = -1.0
    x[..., 24:25, 4:7] = -1.0  # three pixels do not count
    y = x.clone()
    y[..., 22:, :] = 1.0
    assert lost_marks(x, x) == 0.0
    assert float(lost_marks(y, x)) == pytest.approx(0.375)
    assert float(lost_marks(torch.full_like(x, 1.0), x)) == pytest.approx(0.75)
    assert lost_marks(y, torch.full_like(x, 1.0)) == 0.0


def test_small_changes_are_not_made_and_large_ones_are() -> None:
    x = torch.tensor([0.0, 0.0, 0.0, 0.95, 0.0])
    proposed = torch.tensor([10 * LEVEL, 40 * LEVEL, 18 * LEVEL, 1.0, -1.0])
    y = Restorer.settle(x, proposed)
    assert y[:2].tolist() == [0.0, float(proposed[1])]
    assert 0.0 < y[2] < proposed[2]  # the ramp between
    assert y[3:].tolist() == [1.0, -1.0]  # black and white are made in any case


def test_a_clean_page_stays(network: Restorer) -> None:
    state = network.change.state_dict()
    network.change.load_state_dict(
        {name: 1e-3 * value for name, value in state.items()}
    )  # small changes
    x = torch.ones(2, 1, 32, 48)
    x[..., 8:12, 4:40] = -1.0
    torch.testing.assert_close(network(x), x, atol=LEVEL / 2, rtol=0)
    assert not torch.equal(network.propose(x), x)


def test_a_tile_is_a_part_of_the_whole(network: Restorer) -> None:
    x = torch.randn(1, 1, 32, 2048).clamp(-1, 1)
    whole, part = network.propose(x), network.propose(x[..., 256:-256])
    torch.testing.assert_close(part[..., 720:-720], whole[..., 976:-976], atol=1e-5, rtol=0)
    assert (part[..., :8] - whole[..., 256:264]).abs().max() > 1e-4  # the edge of a tile differs


def test_a_space_to_depth_convolution_has_the_sums_of_a_plain_one() -> None:
    layer = Conv2d(3, 5, 3, padding=1)
    x = torch.randn(2, 3, 8, 12)
    for given in (x, functional.pixel_unshuffle(x, 2)):
        torch.testing.assert_close(
            functional.pixel_shuffle(space_to_depth_convolution(layer, given), 2), layer(x)
        )


def test_gradients_pass_the_bounds_in_training(network: Restorer) -> None:
    network.train()
    x = torch.zeros(1, 1, 16, 16)
    x[..., 8:] = -1.0  # paper without ink becomes white in any case
    network.change.get_parameter("bias").data.fill_(5.0)
    y: Tensor = network(x)
    assert (y == 1.0).all()
    torch.autograd.backward(y.sum())
    gradient = network.change.get_parameter("bias").grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_training_learns_to_restore(pairs: Dataset, tmp_path: Path) -> None:
    longer = dataclasses.replace(PRESET, stages=(dataclasses.replace(PRESET.stages[1], steps=120),))
    whole = run(longer, pairs, tmp_path)
    terms = [whole.step_once() for _ in range(120)]
    for name in ("project", "again"):
        values = [float(each[name]) for each in terms]
        assert np.mean(values[-10:]) < 0.7 * np.mean(values[:10])


def test_an_exported_model_has_rows_of_a_tile_and_no_noise_and_a_page_that_shows_what_ocr_reads(
    pairs: Dataset, tmp_path: Path
) -> None:
    run(PRESET, pairs, tmp_path / "runs" / "pages").train()
    exported, verifications = export(
        tmp_path / "runs" / "pages", tmp_path / "models", fp16=True, threads=1
    )
    assert set(verifications) == {"model.onnx", "model.fp16.onnx"}
    artifact = Artifact.read(exported, threads=1)
    card = from_metadata(artifact.function.metadata)
    assert (card.schema_version, card.shape, card.noise, card.objective) == (
        2,
        (1, 64, 64),
        None,
        None,
    )
    assert card.training is not None
    network = load_run(tmp_path / "runs" / "pages").network
    assert card.tiles is not None
    assert card.tiles.smaller == (16, 32, 48)
    x = np.random.default_rng(0).uniform(-1, 1, (3, 1, 64, 64)).astype(np.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(artifact.function(x), network(torch.from_numpy(x)), atol=1e-5)
    assert artifact.golden().x.shape == (1, 1, 16, 16)  # the service runs them at every start
    verify(tmp_path / "runs" / "pages", exported, threads=1)
    with pytest.raises(UserError, match="makes nothing of noise"):
        evaluate(exported, "pairs.npz", cache=tmp_path)
    rates = {"raw": 4.0, "background": 3.0, "f": 1.5, "f2": 1.6}
    ocr = {
        "blocks": 7,
        "cer": {"clean": dict.fromkeys(rates, 0.1), "light": rates, "fade": rates | {"f": 9.0}},
        "means": {"seen": rates},
        "pixels": {"clean": {"changed": 0.5, "moved": 0.1}},
        "photographs": {"coins": 3.2},
    }
    artifacts = read_all(exported, threads=1)
    publish(exported, with_fields(artifacts, quality={"ocr": ocr}), keep=True)
    page = write_page(exported, tmp_path / "pages.md").read_text()
    for text in (
        "| seen | 4.0 | 3.0 | 1.5 | 1.6 |",
        "fade 4.0 % → 9.0 %",
        "coins 3",
        "any size in tiles of 64×64",
    ):
        assert text in page
