import numpy as np
import pytest
import torch
from torch import Tensor

from model_export.data import drawings
from model_export.data.drawings import (
    RandomDrawings,
    held_out_drawings,
    on_background,
    training_drawings,
)

BACKGROUNDS = [(1, (-1.0,)), (1, (0.9,)), (3, (-1.0,)), (3, (0.6, -0.2, 1.0))]
COLOURS = torch.rand((4, 3, 28, 28), generator=torch.Generator().manual_seed(0)) * 2 - 1  # of the pens


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "_BANK", 20)


def drawn(pictures: Tensor, background: tuple[float, ...], seed: int = 0) -> Tensor:
    source = RandomDrawings(COLOURS[:, : pictures.shape[1]], background, 5)
    return source.draw(pictures, torch.Generator().manual_seed(seed))


def test_drawings_are_bright_differ_and_come_again() -> None:
    first, with_digits = (training_drawings(40, 28, 1, digits=digits) for digits in (False, True))
    assert first.shape == (40, 28, 28)
    assert (first.max((1, 2)) > 250).all()
    assert (first[:, [0, -1]] == 0).mean() > 0.9
    assert len(np.unique(first, axis=0)) == 40
    assert np.array_equal(first, training_drawings(40, 28, 1))
    assert not any(np.array_equal(first, each) for each in (training_drawings(40, 28, 2), with_digits))


def test_held_out_drawings_are_letters_and_shapes_of_every_size() -> None:
    kinds = held_out_drawings(16, 28, faces=True)
    assert list(kinds) == ["letters", "shapes", "faces"]
    for kind in kinds.values():
        assert len(np.unique(kind, axis=0)) == 16
        assert (kind.max((1, 2)) > 250).all()
    assert list(held_out_drawings(16, 28, faces=False)) == ["letters", "shapes"]
    assert held_out_drawings(2, 64, faces=False)["shapes"].shape == (2, 64, 64)


@pytest.mark.parametrize(("channels", "background"), BACKGROUNDS)
def test_ink_stands_out_from_any_background(channels: int, background: tuple[float, ...]) -> None:
    ink = np.array([[[0, 255]]], np.uint8)
    rows = on_background(ink, channels, background)
    assert rows.shape == (1, channels, 1, 2)
    ground = np.broadcast_to(background, channels)
    np.testing.assert_allclose(rows[0, :, 0, 0], ground, rtol=1e-6)
    np.testing.assert_array_equal(rows[0, :, 0, 1], np.where(ground > 0, -1, 1))


@pytest.mark.parametrize(("channels", "background"), BACKGROUNDS)
def test_rows_of_training_stay_in_range_and_on_their_background(channels: int, background: tuple[float, ...]) -> None:
    ground = torch.tensor(background)[None, :, None, None]
    pictures = ground.expand(20, channels, 28, 28).clone()
    pictures[:, :, 10:18, 13:15] = 0.5
    rows = drawn(pictures, background)
    assert rows.shape == pictures.shape
    assert float(rows.abs().max()) <= 1.0 + 1e-5
    assert float(((rows - ground).abs().amax(1) < 1e-3).float().mean()) > 0.5
    assert len(torch.unique(rows, dim=0)) == 20
    assert torch.equal(rows, drawn(pictures, background))
    assert not torch.equal(rows, drawn(pictures, background, seed=1))


def test_some_rows_are_made_of_the_pictures_and_none_is_one() -> None:
    pictures = torch.full((20, 1, 28, 28), -1.0)
    for i, picture in enumerate(pictures):
        picture[:, 4 + i % 5 : 24, 6 + i % 7 : 12 + i % 7] = 1.0
    rows, without = drawn(pictures, (-1.0,)), drawn(torch.full_like(pictures, -1.0), (-1.0,))
    changed = (rows != without).flatten(1).any(1)
    assert changed.tolist() == [False] * 14 + [True] * 6
    assert not any(bool((row == picture).all()) for row in rows for picture in pictures)


def test_in_colour_the_pens_have_colours_of_the_pictures() -> None:
    pictures = torch.tensor([0.5, -0.5, 0.0])[None, :, None, None].expand(4, 3, 28, 28)
    ink = RandomDrawings(pictures, (-1.0,), 5).draw(pictures, torch.Generator().manual_seed(0)) + 1
    upright = ink[:1].flatten(2)
    strongest = upright[..., upright.sum(1).argmax(-1)[0]]
    torch.testing.assert_close(strongest, torch.tensor([[1.5, 0.5, 1.0]]), atol=0.05, rtol=0.0)
