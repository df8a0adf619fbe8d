"""Data sets: an `.npz`, a folder or zip of pictures, or a published data set that is downloaded.

A loaded data set is held in memory as uint8 tensors (N, C, H, W), split into training and held-out
pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export.data.known_sets import (
    KNOWN_SETS,
    Arrays,
    available,
    check_content,
    content_digest,
    download,
    recognise,
)
from model_export.data.picture_files import (
    Inspection,
    PictureFile,
    find_files,
    inspect_pictures,
    load_files,
    readable,
)
from model_export.errors import UserError
from service.artifact.card import Card

_DAMAGED = "damaged_train"
# of an `.npz`
_ARRAYS = ("x_train", "x_test", "y_train", "y_test", _DAMAGED)


@dataclass(frozen=True, slots=True, eq=False)
class Attributes:
    """What each picture shows, as one value of each of several kinds, such as hair or glasses."""

    names: tuple[str, ...]
    train: NDArray[np.int64]  # (N, K), the index of the value
    held_out: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Pictures in memory."""

    name: str  # file or data set name, never a path
    # digest of pictures and labels, or for a folder or zip of the names and contents of its
    # pictures
    sha256: str
    licence: str  # `unknown` if it is not known
    train: Tensor  # (N, C, H, W) uint8
    held_out: Tensor
    # of each training picture, what f shall restore to it; None: made in training
    damaged: Tensor | None = None
    train_labels: Tensor | None = None  # (N,) int64, or None if the data has no classes
    held_out_labels: Tensor | None = None
    known: str = ""  # name of the published set with this content; empty if it is none
    skipped: tuple[str, ...] = ()  # files that are no readable pictures
    attributes: Attributes | None = None


def to_model_range(images: Tensor) -> Tensor:
    """Levels 0…255 uint8 as −1…1 float32; `service.artifact.pixels`, in float64, differs in the
    last bit at most.
    """
    return images.float() / 127.5 - 1.0


@dataclass
class FileSource:
    """Pictures in the files of a folder or zip."""

    name: str
    files: Sequence[PictureFile]
    skip_bad: bool
    known: str = ""

    def inspect(self) -> Inspection:
        """Look at number, sizes, colours and borders of the pictures, the last three in a
        sample.
        """

        def picture(index: int) -> NDArray[np.uint8] | None:
            found = readable(self.files[index])
            return None if found is None else np.asarray(found[1], dtype=np.uint8)

        return inspect_pictures(self.name, len(self.files), picture, len(self.files))

    def load(self, *, size: int, channels: int) -> Dataset:
        """Load all pictures as (channels, size, size), cropped to the centre square and resized."""
        sha256, pictures, held_out, bad = load_files(
            self.name, self.files, size, channels, skip_bad=self.skip_bad
        )
        known = recognise(sha256)
        return Dataset(
            name=self.name,
            sha256=sha256,
            licence=KNOWN_SETS[known].licence if known else "unknown",
            train=pictures[~held_out],
            held_out=pictures[held_out],
            known=known,
            skipped=tuple(bad),
        )


class ArraySource:
    """Pictures (N, H, W), (N, H, W, C) or (N, C, H, W) of one size in arrays, with labels and
    attributes.
    """

    def __init__(self, name: str, arrays: Arrays, *, downloaded: bool = False) -> None:
        self.name = name
        keys = [key for key in ("x_train", "x_test", _DAMAGED) if key in arrays]
        self._pictures = {
            key: _channels_first(arrays[key], f"--data {name}: {key}") for key in keys
        }
        train = self._pictures["x_train"]
        if len(self._pictures.get(_DAMAGED, train)) != len(train):
            raise UserError(f"--data {name}: {_DAMAGED} must be one picture for each of x_train")
        self._labels: dict[str, NDArray[np.int64]] = {}
        for part in ("train", "test"):
            value = arrays.get(f"y_{part}")
            if value is None:
                continue
            if value.shape != (len(self._pictures[f"x_{part}"]),) or value.dtype.kind not in "iu":
                raise UserError(
                    f"--data {name}: y_{part} must be one integer for each picture of x_{part}"
                )
            self._labels[f"y_{part}"] = value.astype(np.int64)
        self._attributes = None
        if "attributes" in arrays:
            values = (arrays[f"attributes_{part}"].astype(np.int64) for part in ("train", "test"))
            self._attributes = Attributes(tuple(map(str, arrays["attributes"])), *values)
        self._sha256 = content_digest({**self._pictures, **self._labels})
        self.known = recognise(self._sha256) or (name if downloaded else "")
        if downloaded:
            check_content(name, self._sha256)

    def inspect(self) -> Inspection:
        """Look at number, size, colours and borders of the training pictures, the last two in a
        sample.
        """
        train = self._pictures["x_train"].transpose(0, 2, 3, 1)
        return inspect_pictures(
            self.name, len(train) + len(self._pictures["x_test"]), train.__getitem__, len(train)
        )

    def load(self, *, size: int, channels: int) -> Dataset:
        """All pictures, which must be (channels, size, size)."""
        for key, pictures in self._pictures.items():
            if pictures.shape[1:] != (channels, size, size):
                differs = (
                    f"pictures {pictures.shape[1:]}, the preset wants {(channels, size, size)}"
                )
                raise UserError(f"--data {self.name}: {key} has {differs}; see --size, --channels")
        arrays = {**self._pictures, **self._labels}
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        return Dataset(
            name=self.name,
            sha256=self._sha256,
            licence=KNOWN_SETS[self.known].licence if self.known else "unknown",
            train=tensors["x_train"],
            held_out=tensors["x_test"],
            damaged=tensors.get(_DAMAGED),
            train_labels=tensors.get("y_train"),
            held_out_labels=tensors.get("y_test"),
            known=self.known,
            attributes=self._attributes,
        )


Source = FileSource | ArraySource
"""Pictures that `--data` names, before their size and channels are chosen."""


def load_data_of(card: Card, source: str, *, skip_bad: bool) -> Dataset:
    """Load the data that a model was trained on, in the model's shape."""
    opened = open_source(source, skip_bad=skip_bad)
    data = opened.load(size=card.shape[1], channels=card.shape[0])
    if card.data is not None and data.sha256 != card.data.sha256:
        raise UserError(
            f"--data {data.name}: not what {card.ref} was trained on, {card.data.name} of "
            f"another SHA-256"
        )
    return data


def open_source(source: str, *, skip_bad: bool = False) -> Source:
    """Find the pictures that `--data` names.

    It is the path of an `.npz` (`x_train`, `x_test`, optional `y_train`, `y_test`,
    `damaged_train`), of a folder or zip of pictures (sub-folders `train` and `test` or `val` are
    the split; without them every tenth picture is held out), or the name of a published set,
    downloaded or drawn to `~/.cache/ign-service`.
    """
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".zip"):
        return FileSource(path.resolve().name, find_files(path), skip_bad=skip_bad)
    if path.is_file():
        if path.suffix != ".npz":
            raise UserError(f"--data {source}: expected an .npz, a .zip or a folder of pictures")
        return ArraySource(path.name, _read_npz(path))
    if source not in available():
        known = ", ".join(available())
        raise UserError(
            f"--data {source}: no such file or folder, and not one of the sets to download: {known}"
        )
    return ArraySource(source, download(source), downloaded=True)


def _read_npz(path: Path) -> Arrays:
    try:
        # Opened here, because numpy does not close a file that is not an archive.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in _ARRAYS if key in file}
    except (
        Exception
    ) as exc:  # for damaged files numpy, zipfile and zlib raise nearly every built-in exception
        raise UserError(f"--data {path.name}: not a readable .npz file") from exc
    for key in ("x_train", "x_test"):
        if key not in arrays:
            raise UserError(f"--data {path.name}: array {key} is missing")
    return arrays


def _channels_first(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) uint8 → (N, C, H, W)."""
    channels = {array.shape[1], array.shape[-1]} & {1, 3} if array.ndim == 4 else {1}
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.size == 0 or not channels:
        wanted = "uint8 pictures (N, H, W) or (N, H, W, C), C = 1 or 3"
        raise UserError(f"{what} must be {wanted}, found {array.dtype} {array.shape}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(array)
