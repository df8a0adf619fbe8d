"""Data sets: an `.npz`, a folder or zip of pictures, or a torchvision data set that is downloaded.

A loaded data set is held in memory as uint8 tensors (N, C, H, W), split into training and held-out pictures.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from model_export.errors import UserError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_TORCHVISION = {
    "MNIST": "CC BY-SA 3.0",
    "FashionMNIST": "MIT",
    "KMNIST": "CC BY-SA 4.0",
    "CIFAR10": "unknown",
    "SVHN": "non-commercial",
}
_LICENCES = {
    "mnist.npz": "CC BY-SA 3.0",
    "fashion_mnist.npz": "MIT",
    "celeba64.zip": "non-commercial research",
}
_HELD_OUT = 0.1  # share of a folder or zip that has no split
_READ_BYTES = 1 << 20
# The errors that numpy, zipfile and zlib raise on damaged files and on files with a wrong suffix.
_UNREADABLE = (OSError, ValueError, EOFError, TypeError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Pictures in memory.

    Args:
        name: file or data set name, never a path.
        sha256: of the file; for a folder, of the names and contents of its pictures.
        licence: `unknown` if it is not known.
        train, held_out: (N, C, H, W) uint8.
        train_labels, held_out_labels: (N,) int64, or None if the data has no classes.
    """

    name: str
    sha256: str
    licence: str
    train: Tensor
    held_out: Tensor
    train_labels: Tensor | None = None
    held_out_labels: Tensor | None = None


def to_model_range(images: Tensor) -> Tensor:
    """Convert levels 0…255 uint8 to −1…1 float32, on the device of the tensor.

    `service.artifact.pixels` computes the same in float64; the results differ in the last bit at most.
    """
    return images.float() / 127.5 - 1.0


def load_dataset(source: str, *, size: int, channels: int) -> Dataset:
    """Load pictures and convert them to (channels, size, size).

    Args:
        source: path of an `.npz` (`x_train`, `x_test`, optional `y_train`, `y_test`), of a folder or zip of pictures
            (sub-folders `train` and `test` or `val` are the split; without them every tenth picture is held out), or
            the name of a torchvision data set, downloaded to `~/.cache/ign-service`.
        size: height and width. Pictures of an `.npz` must have this size; others are cropped to the centre square and
            resized (Lanczos).
        channels: 1 or 3.

    Raises:
        UserError: the source is missing or unusable; the text names the source and the reason.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_files(path.name, list(_folder(path)), size, channels)
    if path.is_file():
        if path.suffix == ".npz":
            return _from_npz(path, size, channels)
        if path.suffix == ".zip":
            return _from_zip(path, size, channels)
        raise UserError(f"--data {source}: expected an .npz, a .zip or a folder of pictures")
    if source in _TORCHVISION:
        return _from_torchvision(source, size, channels)
    known = ", ".join(sorted(_TORCHVISION))
    raise UserError(f"--data {source}: no such file or folder, and not one of the torchvision names {known}")


def _from_npz(path: Path, size: int, channels: int) -> Dataset:
    try:
        # Opened here, because numpy does not close a file that is not an archive.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("x_train", "x_test", "y_train", "y_test") if key in file}
    except _UNREADABLE as exc:
        raise UserError(f"--data {path.name}: not a readable .npz file") from exc
    for key in ("x_train", "x_test"):
        if key not in arrays:
            raise UserError(f"--data {path.name}: array {key} is missing")
    pictures = {
        key: _check_pictures(arrays[key], f"--data {path.name}: {key}", size, channels) for key in ("x_train", "x_test")
    }
    labels: dict[str, Tensor | None] = {}
    for key, images in (("y_train", "x_train"), ("y_test", "x_test")):
        value = arrays.get(key)
        if value is not None and (value.shape != (len(pictures[images]),) or value.dtype.kind not in "iu"):
            raise UserError(f"--data {path.name}: {key} must be one integer for each picture of {images}")
        labels[key] = None if value is None else torch.from_numpy(value.astype(np.int64))
    return Dataset(
        name=path.name,
        sha256=file_digest(path),
        licence=_LICENCES.get(path.name, "unknown"),
        train=pictures["x_train"],
        held_out=pictures["x_test"],
        train_labels=labels["y_train"],
        held_out_labels=labels["y_test"],
    )


def _check_pictures(array: NDArray[Any], what: str, size: int, channels: int) -> Tensor:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) uint8 → (N, C, H, W)."""
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or len(array) == 0:
        raise UserError(f"{what} must be uint8 pictures (N, H, W) or (N, H, W, C), found {array.dtype} {array.shape}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[-1] == channels and array.shape[1] != channels:
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1:] != (channels, size, size):
        raise UserError(
            f"{what} has pictures {array.shape[1:]}, the preset wants {(channels, size, size)}; see --size, --channels"
        )
    return torch.from_numpy(np.ascontiguousarray(array))


ReadBytes = Callable[[], bytes]


def _folder(root: Path) -> Iterator[tuple[str, ReadBytes]]:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if _is_picture(name) and path.is_file():
            yield name, path.read_bytes


def _is_picture(name: str) -> bool:
    """Decide by the suffix; hidden files and the `__MACOSX` entries of archives do not count."""
    path = PurePosixPath(name)
    return path.suffix.lower() in _SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _from_zip(path: Path, size: int, channels: int) -> Dataset:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if _is_picture(name))
            # Read here in order, because the decoding threads must not share one open archive.
            files = [(name, _return_bytes(archive.read(name))) for name in names]
    except (*_UNREADABLE, RuntimeError) as exc:  # RuntimeError: encrypted
        raise UserError(f"--data {path.name}: not a readable .zip file") from exc
    return _from_files(path.name, files, size, channels)


def _return_bytes(data: bytes) -> ReadBytes:
    return lambda: data


def _from_files(name: str, files: list[tuple[str, ReadBytes]], size: int, channels: int) -> Dataset:
    if not files:
        raise UserError(f"--data {name}: no pictures in it ({', '.join(sorted(_SUFFIXES))})")
    digest = hashlib.sha256()
    pictures = torch.empty((len(files), channels, size, size), dtype=torch.uint8)

    def read(item: tuple[str, ReadBytes]) -> tuple[bytes, NDArray[np.uint8]]:
        data = item[1]()
        return hashlib.sha256(data).digest(), _decode(data, f"--data {name}: {item[0]}", size, channels)

    with ThreadPoolExecutor() as pool:
        for i, (hashed, array) in enumerate(pool.map(read, files)):
            digest.update(files[i][0].encode() + b"\0" + hashed)
            pictures[i] = torch.from_numpy(array)
    held_out = _held_out([path for path, _ in files])
    if bool(held_out.all()) or not bool(held_out.any()):
        raise UserError(f"--data {name}: needs both training and held-out pictures, at least 10 in all")
    return Dataset(
        name=name,
        sha256=digest.hexdigest(),
        licence=_LICENCES.get(name, "unknown"),
        train=pictures[~held_out],
        held_out=pictures[held_out],
    )


def _held_out(paths: list[str]) -> Tensor:
    """A mask of the held-out pictures: those below a `test` or `val` folder, else every tenth."""
    split = [next((p for p in path.split("/")[:-1] if p in ("train", "test", "val")), None) for path in paths]
    if "train" in split and len(set(split)) > 1:
        return torch.tensor([part in ("test", "val") for part in split])
    every = round(1 / _HELD_OUT)
    return torch.tensor([i % every == every - 1 for i in range(len(paths))])


def _decode(data: bytes, what: str, size: int, channels: int) -> NDArray[np.uint8]:
    """Decode, composite alpha on black, crop to the centre square and resize (Lanczos): (C, H, W) uint8."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = _convert(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as exc:
        raise UserError(f"{what}: not a readable picture") from exc
    if upright.size != (size, size):
        upright = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
    array = np.array(upright, dtype=np.uint8)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert to 8-bit grey or RGB as the service does: 16-bit grey is scaled, alpha is composited on black."""
    if image.mode.startswith("I"):
        image = Image.fromarray(np.rint(np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image.convert(mode)


def _from_torchvision(name: str, size: int, channels: int) -> Dataset:
    from torchvision import datasets

    root = Path("~/.cache/ign-service").expanduser()
    dataset_class = getattr(datasets, name)
    try:
        if name == "SVHN":
            parts = [dataset_class(str(root), split=split, download=True) for split in ("train", "test")]
        else:
            parts = [dataset_class(str(root), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as exc:
        raise UserError(f"--data {name}: the download failed: {exc}") from exc
    images, labels = [], []
    for part in parts:
        pictures = [np.asarray(image.convert("L" if channels == 1 else "RGB")) for image, _ in part]
        images.append(_check_pictures(np.stack(pictures), f"--data {name}", size, channels))
        labels.append(torch.tensor([int(label) for _, label in part]))
    digest = hashlib.sha256(images[0].numpy().tobytes() + images[1].numpy().tobytes()).hexdigest()
    return Dataset(name, digest, _TORCHVISION[name], images[0], images[1], labels[0], labels[1])


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
