import dataclasses

import pytest
import torch
from torch import Tensor

from model_export.data.datasets import Dataset
from model_export.training import perceptual
from model_export.training.perceptual import PerceptualNetwork, fit, new_network

CPU = torch.device("cpu")


def corners(count: int, *, labels: bool) -> Dataset:
    """Noisy pictures 16×16 with a bright square of 5 pixels in one of four corners, which is the
    label.
    """
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 60, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    corner = torch.arange(count) % 4
    for picture, place in zip(pictures, corner, strict=True):
        down, right = divmod(int(place), 2)
        picture[:, 9 * down + 1 : 9 * down + 6, 9 * right + 1 : 9 * right + 6] = 230
    data = Dataset(name="corners", sha256="", licence="", train=pictures, held_out=pictures[:40])
    return (
        dataclasses.replace(data, train_labels=corner, held_out_labels=corner[:40])
        if labels
        else data
    )


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


def test_it_tells_pictures_from_drawings() -> None:
    data = corners(200, labels=True)
    network = fitted(data)
    x = data.held_out / 127.5 - 1
    labels, drawn = network(torch.cat([x, -x])).split(network.heads, 1)
    assert network.heads == (4, 2)
    assert (labels[:40].argmax(1) == data.held_out_labels).float().mean() > 0.9
    assert drawn.argmax(1).tolist() == [0] * 40 + [1] * 40


def test_without_labels_it_learns_to_read_rotations() -> None:
    data = corners(200, labels=False)
    # in the first corner
    squares = dataclasses.replace(data, train=data.train[::4], held_out=data.held_out[::4])
    network = fitted(squares)
    turned = torch.rot90(squares.held_out / 127.5 - 1, 1, (2, 3))
    assert network.heads == (4, 2)
    assert (network(turned)[:, :4].argmax(1) == 1).float().mean() > 0.9
