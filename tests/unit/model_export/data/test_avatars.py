import importlib.util
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model_export.data import avatars, known_sets
from model_export.data.avatars import draw_avatars
from model_export.data.datasets import load_dataset
from model_export.errors import UserError

COUNT, SIZE = 30, 16


@pytest.fixture(scope="module")
def drawn() -> dict[str, NDArray[Any]]:
    return draw_avatars(COUNT, size=SIZE)


@pytest.mark.slow
def test_the_set_is_one_that_training_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(known_sets, "_CACHE", str(tmp_path))
    monkeypatch.setattr(avatars, "draw_avatars", partial(draw_avatars, COUNT, size=SIZE))
    data = load_dataset("avatars64", size=SIZE, channels=3)
    assert (len(data.train), len(data.held_out)) == (27, 3)
    assert (data.known, data.licence) == ("avatars64", "CC BY 4.0")
    assert len(np.unique(data.train.numpy().reshape(27, -1), axis=0)) == 27
    assert data.attributes is not None
    assert {"hair", "eyes", "mouth", "brows", "glasses", "skin", "hair_colour"} <= set(data.attributes.names)
    assert data.attributes.train.shape == (27, len(data.attributes.names))
    assert data.attributes.held_out.shape == (3, len(data.attributes.names))
    monkeypatch.setattr(avatars, "draw_avatars", None)
    assert load_dataset("avatars64", size=SIZE, channels=3).sha256 == data.sha256


def test_attributes_describe_the_picture(drawn: dict[str, NDArray[Any]]) -> None:
    names = list(drawn["attributes"])
    skins = drawn["values_skin"][drawn["attributes_train"][:, names.index("skin")]]
    for picture, skin in zip(drawn["x_train"], skins, strict=True):
        colour = np.array([int(skin[i : i + 2], 16) for i in (1, 3, 5)])
        assert np.abs(picture.astype(int) - colour).max(2).min() <= 8
    background = [int(avatars.BACKGROUNDS[0][i : i + 2], 16) for i in (0, 2, 4)]
    assert (drawn["x_train"][:, 0, 0] == background).all(1).any()


@pytest.mark.slow
def test_it_does_not_depend_on_the_processes(drawn: dict[str, NDArray[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avatars, "_CHUNK", 15)  # so that there is work for two
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    again = draw_avatars(COUNT, size=SIZE)
    assert all(np.array_equal(again[name], array) for name, array in drawn.items())


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    avatars._attribute_values.cache_clear()
    avatars._definition.cache_clear()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(avatars, "find_spec", lambda name: None if name == "dicebear" else find_spec(name))
    with pytest.raises(UserError, match="dicebear-core"):
        draw_avatars(20)
    avatars._definition.cache_clear()
