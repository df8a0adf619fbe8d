import importlib.util
from pathlib import Path

import numpy as np
import pytest

from model_export.cli import main
from model_export.data import avatars
from model_export.data.avatars import AvatarOptions, write_avatars
from model_export.data.datasets import load_dataset
from model_export.errors import UserError

COUNT, SIZE = 30, 16


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("avatars") / "avatars.npz"
    write_avatars(AvatarOptions(count=COUNT, size=SIZE), out, processes=1)
    return out


@pytest.mark.slow
def test_the_set_is_one_that_training_reads(drawn: Path) -> None:
    data = load_dataset(str(drawn), size=SIZE, channels=3)
    assert (len(data.train), len(data.held_out)) == (27, 3)
    assert data.licence == "CC BY 4.0"
    assert len(np.unique(data.train.numpy().reshape(27, -1), axis=0)) == 27
    assert data.attributes is not None
    assert {"hair", "eyes", "mouth", "brows", "glasses", "skin", "hair_colour"} <= set(data.attributes.names)
    assert data.attributes.train.shape == (27, len(data.attributes.names))
    assert data.attributes.held_out.shape == (3, len(data.attributes.names))


def test_attributes_describe_the_picture(drawn: Path) -> None:
    with np.load(drawn, allow_pickle=False) as file:
        arrays = dict(file)
    names = list(arrays["attributes"])
    skins = arrays["values_skin"][arrays["attributes_train"][:, names.index("skin")]]
    for picture, skin in zip(arrays["x_train"], skins, strict=True):
        colour = np.array([int(skin[i : i + 2], 16) for i in (1, 3, 5)])
        assert np.abs(picture.astype(int) - colour).max(2).min() <= 8
    background = [int(avatars.BACKGROUNDS[0][i : i + 2], 16) for i in (0, 2, 4)]
    assert (arrays["x_train"][:, 0, 0] == background).all(1).any()
    assert "Lisa Wischofsky" in str(arrays["attribution"])


@pytest.mark.slow
def test_it_depends_on_the_seed_and_not_on_the_processes(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(avatars, "_CHUNK", 15)  # so that there is work for two
    again, other = tmp_path / "again.npz", tmp_path / "other.npz"
    write_avatars(AvatarOptions(count=COUNT, size=SIZE), again, processes=2)
    assert again.read_bytes() == drawn.read_bytes()
    command = ["data", "avatars", "--n", "20", "--size", str(SIZE), "--backgrounds", "00ff00", "--processes", "1"]
    assert main([*command, "--seed", "1", "--out", str(other)]) == 0
    assert str(other) in capsys.readouterr().out
    with np.load(drawn) as first, np.load(other) as second:
        assert (second["x_train"][:, 0, 0] == [0, 255, 0]).all()
        assert not np.array_equal(first["attributes_train"][:18], second["attributes_train"])


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    avatars._attribute_values.cache_clear()
    avatars._definition.cache_clear()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(avatars, "find_spec", lambda name: None if name == "dicebear" else find_spec(name))
    with pytest.raises(UserError, match="dicebear-core"):
        write_avatars(AvatarOptions(count=20), tmp_path / "a.npz", processes=1)
    assert not list(tmp_path.iterdir())
    avatars._definition.cache_clear()
