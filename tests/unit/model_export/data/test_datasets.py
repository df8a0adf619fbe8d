import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from model_export.cli import main
from model_export.data.datasets import open_source
from model_export.data.known_sets import KNOWN_SETS, KnownSet
from model_export.data.picture_files import Inspection, inspect_pictures
from model_export.errors import UserError
from tests.helpers.folders import write
from tests.helpers.pictures import save
from tests.helpers.tiny_training import patterns, train_arguments

Picture = NDArray[np.uint8]


def numbered(count: int, shape: tuple[int, ...] = (8, 8)) -> list[Picture]:
    """Pictures of one value each, by which they are known again."""
    return [np.full(shape, 10 * i, np.uint8) for i in range(count)]


def values(images: torch.Tensor) -> list[int]:
    return [int(image[0, 0, 0]) for image in images]


def test_every_tenth_picture_of_a_folder_is_held_out(tmp_path: Path) -> None:
    write(tmp_path, {f"{i:02}.png": save(picture) for i, picture in enumerate(numbered(20))})
    junk = {
        "__MACOSX/._1.png": b"x",
        ".hidden/2.png": b"x",
        "._3.png": b"x",
        "notes.txt": b"not a picture",
    }
    write(tmp_path, junk)
    data = open_source(str(tmp_path)).load(size=8, channels=1)
    assert values(data.held_out) == [90, 190]
    assert values(data.train) == [10 * i for i in range(20) if i not in (9, 19)]


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_the_split_of_a_folder_or_zip_counts(tmp_path: Path, held_out: str) -> None:
    a, b, c = map(save, numbered(3))
    write(tmp_path, {"train/x/0.png": a, "train/1.png": b, f"{held_out}/2.png": c})
    data = open_source(str(tmp_path)).load(size=8, channels=1)
    assert (values(data.train), values(data.held_out)) == ([10, 0], [20])
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(tmp_path.rglob("*.png")):
            archive.write(name, name.relative_to(tmp_path))
    packed = open_source(str(path)).load(size=8, channels=1)
    assert (values(packed.train), packed.sha256) == (values(data.train), data.sha256)


def test_pictures_are_brought_to_size_and_channels(tmp_path: Path) -> None:
    wide = np.zeros((16, 40, 3), np.uint8)
    wide[:, 12:28] = (255, 0, 0)  # the centre square
    write(tmp_path, {f"{i}.png": save(wide) for i in range(10)})
    data = open_source(str(tmp_path)).load(size=8, channels=3)
    assert data.train.shape == (9, 3, 8, 8)
    assert (data.train[:, 0] > 230).all()  # but for what Lanczos fetches from beyond the edge
    assert (data.train[:, 1:] == 0).all()
    grey = open_source(str(tmp_path)).load(size=8, channels=1)
    assert (grey.train[:, :, 2:-2, 2:-2].float() - 76).abs().max() <= 1  # ITU-R 601 luma of red


def test_16_bit_is_scaled_and_alpha_falls_on_black(tmp_path: Path) -> None:
    pictures = {f"{i}.png": save(picture) for i, picture in enumerate(numbered(9))}
    deep = Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))
    clear = np.full((8, 8, 2), 200, np.uint8)
    clear[..., 1] = 0
    pictures |= {"a.png": save(deep), "b.png": save(clear)}
    data = open_source(str(write(tmp_path, pictures))).load(size=8, channels=1)
    found = values(torch.cat([data.train, data.held_out]))
    assert sorted(found) == sorted([*(10 * i for i in range(9)), 100, 0])


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
    return lambda root: write(
        root / "pictures", {name.replace("_", "."): data for name, data in files.items()}
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (file("data.npz", b"no archive"), "not a readable .npz"),
        (npz(x_train=X), "array x_test is missing"),
        (npz(x_train=X[0], x_test=X), "x_train must be uint8"),
        (npz(x_train=X[..., None].repeat(4, 3), x_test=X), "x_train must be uint8"),
        (npz(x_train=X[:, :4], x_test=X), "the preset wants (1, 8, 8)"),
        (
            npz(x_train=X, x_test=X, damaged_train=X[:3]),
            "damaged_train must be one picture for each of x_train",
        ),
        (npz(x_train=X, x_test=X, y_train=Y[:3]), "y_train must be one integer for each picture"),
        (npz(x_train=X, x_test=X, y_test=np.array([None] * 12)), "not a readable .npz"),  # a pickle
        (file("data.zip", b"no archive"), "not a readable .zip"),
        (file("data.tar", b"something else"), "expected an .npz, a .zip or a folder"),
        (folder(notes_txt=b"no picture"), "no pictures in it"),
        (folder(**{f"{i}_png": save(X[0]) for i in range(9)}), "needs both training and held-out"),
        (folder(**{f"{i}_png": b"no picture" for i in range(10)}), "none of the 10 files"),
        (
            folder(
                **{f"{i}_png": save(X[0]) if i else b"no picture" for i in range(8)},
                a_jpg=b"",
                b_webp=b"RIFF",
            ),
            "3 of 10 files are no readable pictures: 0.png, a.jpg, b.webp; remove them, or "
            "say --skip-bad",
        ),
        (lambda folder: folder / "nothing", "not one of the sets to download: avatars64, cifar10"),
    ],
)
def test_unusable_data_is_one_line_and_exit_code_2(
    make: Callable[[Path], Path], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path)
    assert main(train_arguments(source, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"python -m model_export \w+: --data .*\n", error)
    assert says in error
    assert not (tmp_path / "run").exists()


def test_members_of_a_zip_are_read_up_to_a_size(tmp_path: Path) -> None:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, picture in enumerate(numbered(20)):
            archive.writestr(f"{i:02}.png", save(picture))
        archive.writestr("98.png", bytes(65 << 20))
        archive.writestr("99.png", save(numbered(1)[0]), zipfile.ZIP_STORED)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"IEND", b"IENx"))  # of the last one, which is not compressed
    data = open_source(str(path), skip_bad=True).load(size=8, channels=1)
    assert data.skipped == ("98.png", "99.png")


def test_the_digest_is_that_of_the_content_and_not_of_the_file(tmp_path: Path) -> None:
    x, y = patterns(20, 0)
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x, y_train=y, y_test=y)
    np.savez_compressed(
        tmp_path / "b.npz", y_test=y, y_train=y.astype(np.int64), x_test=x, x_train=x[..., None]
    )
    np.savez(tmp_path / "c.npz", x_train=x, x_test=x, y_train=y, y_test=y[::-1])
    np.savez(tmp_path / "d.npz", x_train=x, x_test=x, y_train=y, y_test=y, damaged_train=255 - x)
    sources = (open_source(str(tmp_path / f"{name}.npz")) for name in "abcd")
    a, b, c, d = (source.load(size=8, channels=1).sha256 for source in sources)
    assert a == b
    assert len({a, c, d}) == 3


def test_a_published_set_is_downloaded_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (x, y), (x_test, y_test) = patterns(12, 1), patterns(4, 2)

    def mnist(root: str, *, train: bool, download: bool) -> SimpleNamespace:
        return (
            SimpleNamespace(data=x, targets=y)
            if train
            else SimpleNamespace(data=x_test, targets=y_test)
        )

    monkeypatch.setattr("torchvision.datasets.MNIST", mnist)
    with pytest.raises(
        UserError, match=f"not the published set: SHA-256 .*expected {KNOWN_SETS['mnist'].sha256}"
    ):
        open_source("mnist").load(size=8, channels=1)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    from_file = open_source(str(tmp_path / "mnist.npz")).load(size=8, channels=1)
    assert (from_file.known, from_file.licence) == ("", "unknown")  # a name alone proves nothing
    known = KNOWN_SETS["mnist"]._replace(sha256=from_file.sha256)
    monkeypatch.setitem(cast("dict[str, KnownSet]", KNOWN_SETS), "mnist", known)
    data = open_source("mnist").load(size=8, channels=1)
    assert (data.name, data.known, data.licence, data.sha256) == (
        "mnist",
        "mnist",
        known.licence,
        from_file.sha256,
    )
    assert torch.equal(data.train, from_file.train)
    assert data.held_out_labels is not None
    assert data.held_out_labels.tolist() == y_test.tolist()


def shapes(
    count: int, side: int, background: tuple[int, ...], ink: tuple[int, ...]
) -> list[Picture]:
    """A block of ink in the middle of a plain background."""
    pictures = np.empty((count, side, side, len(background)), np.uint8)
    pictures[:] = background
    pictures[:, side // 4 : -side // 4, side // 4 : -side // 4] = ink
    return list(pictures)


@pytest.mark.parametrize(
    ("background", "ink", "channels", "ground", "polarity"),
    [
        ((0,), (255,), 1, "dark", "light-on-dark"),
        ((250,), (10,), 1, "light", "dark-on-light"),
        ((255, 255, 255), (200, 20, 20), 3, "light", "none"),
        ((10, 10, 60), (200, 20, 20), 3, "dark", "none"),
        ((255, 255, 255), (90, 90, 90), 1, "light", "dark-on-light"),  # grey that is stored as RGB
    ],
)
def test_colours_and_ground(
    background: tuple[int, ...], ink: tuple[int, ...], channels: int, ground: str, polarity: str
) -> None:
    inspection = found(shapes(30, 16, background, ink))
    assert (inspection.channels, inspection.ground, inspection.polarity) == (
        channels,
        ground,
        polarity,
    )
    assert inspection.background == background[:channels]
    assert (inspection.count, inspection.smallest, inspection.largest) == (30, (16, 16), (16, 16))


def found(pictures: list[Picture]) -> Inspection:
    return inspect_pictures("x", len(pictures), pictures.__getitem__, len(pictures))


def test_pictures_of_both_grounds_and_photographs_have_no_polarity() -> None:
    inspection = found(shapes(20, 8, (0,), (255,)) + shapes(20, 8, (255,), (0,)))
    assert (inspection.ground, inspection.polarity) == ("plain", "none")
    noise = np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)
    photographs = found(list(noise))
    assert (photographs.channels, photographs.ground, photographs.polarity) == (3, "mixed", "none")
