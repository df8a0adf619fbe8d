import dataclasses

import pytest
import torch
from torch import Tensor

from model_export.data.datasets import Dataset
from model_export.training import perceptual
from model_export.training.perceptual import PerceptualNetwork, fit, new_network

CPU = torch.device("cpu")


def corners(count: int, *, labels: bool) -> Dataset:
    """Noisy pictures 16×16 with a bright square of 5 pixels in one of four corners, which is the label."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 60, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    corner = torch.arange(count) % 4
    for picture, place in zip(pictures, corner, strict=True):
        down, right = divmod(int(place), 2)
        picture[:, 9 * down + 1 : 9 * down + 6, 9 * right + 1 : 9 * right + 6] = 230
    data = Dataset(name="corners", sha256="", licence="", train=pictures, held_out=pictures[:40])
    return dataclasses.replace(data, train_labels=corner, held_out_labels=corner[:40]) if labels else data


def negative(x: Tensor, _: torch.Generator) -> Tensor:
    return -x


def fitted(data: Dataset, seed: int = 0) -> PerceptualNetwork:
    torch.manual_seed(seed)
    network = new_network(data)
    fit(network, data, seed, CPU, negative)
    return network


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "STEPS", 40)


def test_it_learns_to_read_the_labels_and_is_frozen() -> None:
    data = corners(200, labels=True)
    network = fitted(data)
    read = network(data.held_out / 127.5 - 1)[:, :4].argmax(1)
    assert (read == data.held_out_labels).float().mean() > 0.9
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_it_tells_pictures_from_drawings() -> None:
    data = corners(200, labels=True)
    network = fitted(data)
    x = data.held_out / 127.5 - 1
    labels, drawn = network(torch.cat([x, -x])).split(network.heads, 1)
    assert network.heads == (4, 2)
    assert (labels[:40].argmax(1) == data.held_out_labels).float().mean() > 0.9
    assert drawn.argmax(1).tolist() == [0] * 40 + [1] * 40


def test_pixels_are_a_further_scale_in_which_specks_count() -> None:
    network = new_network(corners(8, labels=True))
    x = torch.zeros(1, 1, 16, 16)
    x[..., 8, 8] = 0.5
    plain, (pixels, *others) = network.features(x), network.features(x, pixels=True)
    assert torch.equal(pixels[:, :1], x)
    assert pixels[0, 1, 8, 8] > 1.5
    assert pixels[0, 1, 0, 0] == 0.0
    assert all(map(torch.equal, plain, others))


def test_without_labels_it_learns_to_read_rotations() -> None:
    data = corners(200, labels=False)
    squares = dataclasses.replace(data, train=data.train[::4], held_out=data.held_out[::4])  # in the first corner
    network = fitted(squares)
    turned = torch.rot90(squares.held_out / 127.5 - 1, 1, (2, 3))
    assert network.heads == (4, 2)
    assert (network(turned)[:, :4].argmax(1) == 1).float().mean() > 0.9


def test_the_seed_decides_the_weights_and_the_callers_random_state_stays() -> None:
    data = corners(100, labels=True)

    def weights(seed: int) -> Tensor:
        return torch.cat([parameter.flatten() for parameter in fitted(data, seed).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    network = new_network(data)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    fit(network, data, 1, CPU, negative)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("side", "maps"), [(64, [32, 16, 8]), (28, [14, 7]), (16, [8]), (8, [4])])
def test_features_are_maps_of_half_the_side_and_less(side: int, maps: list[int]) -> None:
    network = PerceptualNetwork(3, side, (2, 5))
    features = network.features(torch.zeros(2, 3, side, side))
    assert [feature.shape[-1] for feature in features] == maps
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 7)
