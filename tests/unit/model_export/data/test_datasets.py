import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from model_export.cli import main
from model_export.data.datasets import load_dataset, to_model_range
from model_export.errors import UserError
from tests.helpers.tiny_training import patterns, train_arguments

Picture = NDArray[np.uint8]


def png(array: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def numbered(count: int, shape: tuple[int, ...] = (8, 8)) -> list[Picture]:
    """Pictures of one value each, by which they are known again."""
    return [np.full(shape, 10 * i, np.uint8) for i in range(count)]


def write(folder: Path, pictures: dict[str, bytes]) -> Path:
    for name, content in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def values(images: torch.Tensor) -> list[int]:
    return [int(image[0, 0, 0]) for image in images]


def test_npz(tmp_path: Path) -> None:
    x, y = patterns(20, 0)
    path = tmp_path / "some.npz"
    np.savez(path, x_train=x[:15], x_test=x[15:], y_train=y[:15], y_test=y[15:])
    data = load_dataset(str(path), size=8, channels=1)
    assert (data.name, data.licence, len(data.sha256)) == ("some.npz", "unknown", 64)
    assert np.array_equal(data.train.numpy()[:, 0], x[:15])
    assert np.array_equal(data.held_out.numpy()[:, 0], x[15:])
    assert data.train_labels is not None
    assert data.train_labels.tolist() == y[:15].tolist()


def test_npz_without_labels_and_with_colour_last(tmp_path: Path) -> None:
    x = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    path = tmp_path / "colour.npz"
    np.savez(path, x_train=x, x_test=x[:1])
    data = load_dataset(str(path), size=8, channels=3)
    assert data.train_labels is None
    assert np.array_equal(data.train.numpy(), x.transpose(0, 3, 1, 2))


def test_every_tenth_picture_of_a_folder_is_held_out(tmp_path: Path) -> None:
    write(tmp_path, {f"{i:02}.png": png(picture) for i, picture in enumerate(numbered(20))})
    (tmp_path / "notes.txt").write_text("not a picture")
    data = load_dataset(str(tmp_path), size=8, channels=1)
    assert values(data.held_out) == [90, 190]
    assert values(data.train) == [10 * i for i in range(20) if i not in (9, 19)]


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_a_folders_own_split_counts(tmp_path: Path, held_out: str) -> None:
    a, b, c = map(png, numbered(3))
    write(tmp_path, {"train/x/0.png": a, "train/1.png": b, f"{held_out}/2.png": c})
    data = load_dataset(str(tmp_path), size=8, channels=1)
    assert (values(data.train), values(data.held_out)) == ([10, 0], [20])


def test_a_zip_is_read_like_its_folder(tmp_path: Path) -> None:
    files = {f"{part}/{i}.png": png(p) for i, p in enumerate(numbered(4)) for part in ("train", "test")}
    folder = write(tmp_path / "pictures", files)
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    unpacked, packed = (load_dataset(str(source), size=8, channels=1) for source in (folder, path))
    assert torch.equal(unpacked.train, packed.train)
    assert torch.equal(unpacked.held_out, packed.held_out)
    assert unpacked.sha256 == packed.sha256


def test_pictures_are_brought_to_size_and_channels(tmp_path: Path) -> None:
    wide = np.zeros((16, 40, 3), np.uint8)
    wide[:, 12:28] = (255, 0, 0)  # the centre square
    write(tmp_path, {f"{i}.png": png(wide) for i in range(10)})
    data = load_dataset(str(tmp_path), size=8, channels=3)
    assert data.train.shape == (9, 3, 8, 8)
    assert (data.train[:, 0] > 230).all()  # but for what Lanczos fetches from beyond the edge
    assert (data.train[:, 1:] == 0).all()
    grey = load_dataset(str(tmp_path), size=8, channels=1)
    assert (grey.train[:, :, 2:-2, 2:-2].float() - 76).abs().max() <= 1  # ITU-R 601 luma of red


def test_16_bit_is_scaled_and_alpha_falls_on_black(tmp_path: Path) -> None:
    pictures = {f"{i}.png": png(picture) for i, picture in enumerate(numbered(9))}
    deep = io.BytesIO()
    Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)).save(deep, "png")
    clear = np.full((8, 8, 2), 200, np.uint8)
    clear[..., 1] = 0
    pictures |= {"a.png": deep.getvalue(), "b.png": png(clear)}
    data = load_dataset(str(write(tmp_path, pictures)), size=8, channels=1)
    found = values(torch.cat([data.train, data.held_out]))
    assert sorted(found) == sorted([*(10 * i for i in range(9)), 100, 0])


def test_hidden_files_and_those_of_macos_are_no_pictures(tmp_path: Path) -> None:
    pictures = {f"{i}.png": png(picture) for i, picture in enumerate(numbered(10))}
    junk = {"__MACOSX/._1.png": b"x", ".hidden/2.png": b"x", "._3.png": b"x"}
    data = load_dataset(str(write(tmp_path, pictures | junk)), size=8, channels=1)
    assert len(data.train) + len(data.held_out) == 10


def test_the_digest_depends_on_the_contents(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {f"{i}.png": png(p) for i, p in enumerate(numbered(10))})
    b = write(tmp_path / "b", {f"{i}.png": png(p) for i, p in enumerate(reversed(numbered(10)))})
    digests = {load_dataset(str(folder), size=8, channels=1).sha256 for folder in (a, b)}
    assert len(digests) == 2


def test_model_range() -> None:
    assert to_model_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


X = np.zeros((12, 8, 8), np.uint8)
Y = np.zeros(12, np.uint8)


def npz(**arrays: NDArray[np.generic]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]  # its other keyword is a bool
        return folder / "data.npz"

    return make


def file(name: str, content: bytes) -> Callable[[Path], Path]:
    return lambda folder: write(folder, {name: content}) / name


def folder(**files: bytes) -> Callable[[Path], Path]:
    return lambda root: write(root / "pictures", {name.replace("_", "."): data for name, data in files.items()})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (file("data.npz", b"no archive"), "not a readable .npz"),
        (file("data.npz", b""), "not a readable .npz"),
        (npz(x_train=X), "array x_test is missing"),
        (npz(x_train=X.astype(float), x_test=X), "x_train must be uint8"),
        (npz(x_train=X[:0], x_test=X), "x_train must be uint8"),
        (npz(x_train=X[0], x_test=X), "x_train must be uint8"),
        (npz(x_train=X[:, :4], x_test=X), "the preset wants (1, 8, 8)"),
        (npz(x_train=X, x_test=X, y_train=Y[:3]), "y_train must be one integer for each picture"),
        (npz(x_train=X, x_test=X, y_test=Y.astype(float)), "y_test must be one integer for each picture"),
        (npz(x_train=X, x_test=X, y_test=np.array([None] * 12)), "not a readable .npz"),  # a pickle
        (file("data.zip", b"no archive"), "not a readable .zip"),
        (file("data.tar", b"something else"), "expected an .npz, a .zip or a folder"),
        (folder(notes_txt=b"no picture"), "no pictures in it"),
        (folder(**{f"{i}_png": png(X[0]) for i in range(9)}), "needs both training and held-out"),
        (folder(**{f"{i}_png": b"no picture" for i in range(10)}), "0.png: not a readable picture"),
        (lambda folder: folder / "nothing", "no such file or folder"),
    ],
)
def test_unusable_data_is_one_line_and_exit_code_2(
    make: Callable[[Path], Path], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path)
    assert main(train_arguments(source, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: --data .*\n", error)
    assert says in error
    assert not (tmp_path / "run").exists()


def test_an_unknown_name_lists_the_data_sets_that_download() -> None:
    with pytest.raises(UserError, match="not one of the torchvision names CIFAR10, FashionMNIST"):
        load_dataset("MNITS", size=28, channels=1)


class Downloaded:
    """Stands for `torchvision.datasets.MNIST`."""

    def __init__(self, root: str, *, train: bool, download: bool) -> None:
        self.pictures, self.labels = patterns(12 if train else 4, int(train))

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return zip(map(Image.fromarray, self.pictures), map(int, self.labels), strict=True)


def test_a_torchvision_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MNIST", Downloaded)
    data = load_dataset("MNIST", size=8, channels=1)
    assert (data.name, data.licence, len(data.train), len(data.held_out)) == ("MNIST", "CC BY-SA 3.0", 12, 4)
    assert data.train_labels is not None
    assert data.train_labels.tolist() == patterns(12, 1)[1].tolist()
    with pytest.raises(UserError, match="the preset wants"):
        load_dataset("MNIST", size=28, channels=1)


def test_a_failed_download_is_the_users_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: str, *, split: str, download: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "SVHN", fail)
    with pytest.raises(UserError, match="--data SVHN: the download failed: no route to host"):
        load_dataset("SVHN", size=32, channels=3)
