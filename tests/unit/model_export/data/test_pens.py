import numpy as np
import pytest
import torch
from torch import Tensor

from model_export.data import pens
from model_export.data.avatars import BACKGROUNDS
from model_export.data.datasets import Attributes, Dataset
from model_export.data.pens import draw_pens

SMILES = (0, 22)
SAD = (3, 13)


@pytest.fixture(scope="module")
def faces() -> Dataset:
    g = np.random.default_rng(0)
    values = {
        "mouth": [*SMILES, *SAD, 8, 14],
        "eyes": [0, 18, 20],
        "hair": [0, 40, 44, 2],
        "glasses": [0, 2],
        "brows": [0, 4],
        "skin": [1, 4],
    }
    attributes = Attributes(
        tuple(values),
        np.stack([g.choice(known, 400) for known in values.values()], 1),
        np.empty((0, 6), np.int64),
    )
    papers = torch.tensor(
        [[int(each[i : i + 2], 16) for i in (0, 2, 4)] for each in BACKGROUNDS], dtype=torch.uint8
    )
    pictures = papers[g.integers(2, size=400)][:, :, None, None].expand(-1, -1, 32, 32)
    return Dataset(
        "faces", "", "", pictures, pictures[:1], attributes=attributes, known="avatars64"
    )


@pytest.fixture(scope="module")
def drawn(faces: Dataset) -> tuple[Tensor, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pens, "_COUNT", 70)
        return draw_pens(faces)


def test_the_pictures_that_fit_a_drawing_show_what_it_shows(
    faces: Dataset, drawn: tuple[Tensor, Tensor]
) -> None:
    rows, fitting = drawn
    assert faces.attributes is not None
    mouths, eyes, *_ = torch.from_numpy(faces.attributes.train)[fitting].unbind(2)
    assert all(
        any(set(row.tolist()) <= set(group) for group in (SMILES, SAD, (8,), (14,)))
        for row in mouths
    )
    assert sum(set(row.tolist()) <= set(SAD) for row in mouths) >= 15  # as many as smiles
    assert (eyes == eyes[:, :1]).all()
    for row, fits in zip(rows, faces.train[fitting], strict=True):
        corner = row[:, -1, 0]
        if (corner == faces.train[:, :, 0, 0]).all(1).any():
            assert (fits[:, :, 0, 0] == corner).all()
