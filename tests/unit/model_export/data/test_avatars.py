import importlib.util
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model_export.data import avatars
from model_export.data.avatars import draw_avatars
from model_export.errors import UserError

COUNT = 30
SIZE = 16


@pytest.fixture(scope="module")
def drawn() -> dict[str, NDArray[Any]]:
    return draw_avatars(COUNT, size=SIZE)


def test_attributes_describe_the_picture(drawn: dict[str, NDArray[Any]]) -> None:
    names = list(drawn["attributes"])
    skins = drawn["values_skin"][drawn["attributes_train"][:, names.index("skin")]]
    for picture, skin in zip(drawn["x_train"], skins, strict=True):
        colour = np.array([int(skin[i : i + 2], 16) for i in (1, 3, 5)])
        assert np.abs(picture.astype(int) - colour).max(2).min() <= 8
    background = [int(avatars.BACKGROUNDS[0][i : i + 2], 16) for i in (0, 2, 4)]
    assert (drawn["x_train"][:, 0, 0] == background).all(1).any()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    avatars._attribute_values.cache_clear()
    avatars._definition.cache_clear()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        avatars, "find_spec", lambda name: None if name == "dicebear" else find_spec(name)
    )
    with pytest.raises(UserError, match="dicebear-core"):
        draw_avatars(20)
    avatars._definition.cache_clear()
