"""Pictures in the files of a folder or zip."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import IO, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.Image import Resampling
from torch import Tensor

from model_export.errors import UserError
from service.artifact.pixels import MID_GREY

ReadBytes = Callable[[], bytes]
PictureFile = tuple[str, ReadBytes]
"""The path of a picture inside its folder or zip, and what reads it."""

SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_FORMATS: Final = ("BMP", "JPEG", "PNG", "WEBP")
_MAX_BYTES: Final = 64 << 20  # of the file of a picture
_HELD_OUT: Final = 10  # every tenth picture is held out where the folders define no split
_NAMED: Final = 100  # bad files that an error names
Picture = NDArray[np.uint8]
Polarity = Literal["light-on-dark", "dark-on-light", "none"]
_SAMPLE: Final = 256  # pictures that are looked at, evenly spread over the data
_COLOUR: Final = 4.0  # levels between the largest and the smallest channel, mean over a picture
_COLOURED: Final = 0.05  # share of pictures in colour from which the data counts as coloured
# levels from the border's median within which a border pixel belongs to the background
_NEAR: Final = 24
_PLAIN: Final = 0.8  # share of such pixels from which a background is plain
# share of pictures with a dark (light) border from which the data has a dark (light) background
_AGREE: Final = 0.95


def find_files(path: Path) -> list[PictureFile]:
    """The pictures of a folder or zip, sorted by their path."""
    files = list(_folder(path)) if path.is_dir() else _zip(path)
    if not files:
        raise UserError(f"--data {path.name}: no pictures in it ({', '.join(SUFFIXES)})")
    return files


def load_files(
    name: str, files: Sequence[PictureFile], size: int, channels: int, *, skip_bad: bool
) -> tuple[str, Tensor, Tensor, list[str]]:
    """Read, crop and resize every picture.

    Returns the SHA-256 of names and contents, the pictures (N, C, H, W) uint8, a mask (N,) of those
    that are held out, and the names of the files that are not readable.
    """
    digest = hashlib.sha256()
    pictures = torch.empty((len(files), channels, size, size), dtype=torch.uint8)
    names: list[str] = []
    bad: list[str] = []

    def read(file: PictureFile) -> tuple[str, bytes, NDArray[np.uint8] | None]:
        if (found := readable(file, "L" if channels == 1 else "RGB")) is None:
            return file[0], b"", None
        return file[0], hashlib.sha256(found[0]).digest(), _fit(found[1], size)

    with ThreadPoolExecutor() as pool:
        for path, hashed, array in pool.map(read, files):
            if array is None:
                bad.append(path)
                continue
            digest.update(path.encode() + b"\0" + hashed)
            pictures[len(names)] = torch.from_numpy(array)
            names.append(path)
    if bad and not skip_bad:
        raise UserError(
            f"--data {name}: {len(bad)} of {len(files)} files are no readable pictures: "
            f"{', '.join(bad[:_NAMED])}; remove them, or say --skip-bad"
        )
    held_out = _held_out(names)
    if held_out.all() or not held_out.any():
        raise UserError(
            f"--data {name}: needs both training and held-out pictures, at least 10 in all"
        )
    return digest.hexdigest(), pictures[: len(names)], held_out, bad


def readable(file: PictureFile, mode: str | None = None) -> tuple[bytes, Image.Image] | None:
    """Content and decoded picture of a file, or None if it is not a readable picture."""
    try:
        data = file[1]()
        return data, _decode(data, mode)
    # for damaged files Pillow, zipfile and zlib raise nearly every built-in exception
    except Exception:
        return None


def _decode(data: bytes, mode: str | None) -> Image.Image:
    """Decode a picture upright, in 8 bits, in mode L or RGB; by default in the one that it is
    stored in.

    16-bit grey is scaled and alpha is composited on black, as the service does.
    """
    with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            image = Image.fromarray(
                np.rint(np.asarray(image).clip(0, 65535) / 257).astype(np.uint8)
            )
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
        return image.convert(mode or ("L" if image.mode in ("1", "L") else "RGB"))


def _fit(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Crop to the centre square and resize (Lanczos): (C, H, W) uint8."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Resampling.LANCZOS)
    return np.ascontiguousarray(np.atleast_3d(np.array(image, np.uint8)).transpose(2, 0, 1))


def _folder(root: Path) -> Iterator[PictureFile]:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if _is_picture(name) and path.is_file():
            yield name, partial(_read, nullcontext(), path.open, "rb")


def _zip(path: Path) -> list[PictureFile]:
    try:
        archive = zipfile.ZipFile(path)
    except Exception as exc:  # see `readable`
        raise UserError(f"--data {path.name}: not a readable .zip file") from exc
    lock = Lock()  # the decoding threads share the open archive
    names = sorted(name for name in archive.namelist() if _is_picture(name))
    return [(name, partial(_read, lock, archive.open, name)) for name in names]


def _read(
    lock: AbstractContextManager[object], open_file: Callable[[str], IO[bytes]], argument: str
) -> bytes:
    """The content of a file; an OSError if it is too large, also when that of a zip is
    decompressed.
    """
    with lock, open_file(argument) as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise OSError("too large")
    return data


def _is_picture(name: str) -> bool:
    """Decide by the suffix; hidden files and the `__MACOSX` entries of archives do not count."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(
        part.startswith((".", "__MACOSX")) for part in path.parts
    )


def _held_out(paths: Sequence[str]) -> Tensor:
    """A mask of the held-out pictures: those below a `test` or `val` folder, else every tenth."""
    split = [
        next((p for p in path.split("/")[:-1] if p in ("train", "test", "val")), None)
        for path in paths
    ]
    if "train" in split and len(set(split)) > 1:
        return torch.tensor([part in ("test", "val") for part in split], dtype=torch.bool)
    return torch.arange(len(paths)) % _HELD_OUT == _HELD_OUT - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What the pictures of a data set are like. All but the number is found in a sample."""

    count: int  # number of pictures
    # (width, height) of the pictures with the shortest and with the longest side
    smallest: tuple[int, int]
    largest: tuple[int, int]
    channels: Literal[1, 3]  # 1 if the pictures are grey, else 3
    background: tuple[int, ...]  # median level of the outermost pixels, for every channel
    # `dark`, `light` or `plain` (neither, or both) if most pictures have a border of one colour;
    # else `mixed`.
    ground: Literal["dark", "light", "plain", "mixed"]

    @property
    def polarity(self) -> Polarity:
        """Of the card. `none` unless the pictures are grey and have a dark or a light
        background.
        """
        if self.channels == 3 or self.ground not in ("dark", "light"):
            return "none"
        return "light-on-dark" if self.ground == "dark" else "dark-on-light"

    def __str__(self) -> str:
        sizes = [
            f"{width}×{height}" for width, height in dict.fromkeys((self.smallest, self.largest))
        ]
        colour = "grey" if self.channels == 1 else "colour"
        return f"{self.count} pictures, {' to '.join(sizes)}, {colour}, {self.ground} background"


def inspect_pictures(
    name: str, count: int, picture: Callable[[int], Picture | None], available: int
) -> Inspection:
    """Look at a sample: ``picture`` maps an index below ``available`` to (H, W) or (H, W, C) uint8,
    or to None if it is not readable.
    """
    indices = np.unique(np.linspace(0, available - 1, min(_SAMPLE, available)).astype(int))
    pictures = [
        np.atleast_3d(each) for index in indices if (each := picture(int(index))) is not None
    ]
    if not pictures:
        raise UserError(
            f"--data {name}: none of the {len(indices)} files looked at is a readable picture"
        )
    sizes = [(each.shape[1], each.shape[0]) for each in pictures]
    spreads = np.array([np.ptp(each.astype(np.int16), axis=2).mean() for each in pictures])
    coloured = bool((spreads > _COLOUR).mean() >= _COLOURED)
    borders = [_border(each, 3 if coloured else 1) for each in pictures]
    return Inspection(
        count=count,
        smallest=min(sizes, key=lambda size: (min(size), size)),
        largest=max(sizes, key=lambda size: (max(size), size)),
        channels=3 if coloured else 1,
        background=tuple(int(level) for level in np.median(np.concatenate(borders), axis=0)),
        ground=_ground(borders),
    )


def _border(picture: Picture, channels: int) -> Picture:
    """The outermost ring of pixels, (N, channels)."""
    inside = np.zeros(picture.shape[:2], dtype=np.bool_)
    inside[1:-1, 1:-1] = True
    ring = picture[~inside]
    return ring[:, :1] if channels == 1 else np.broadcast_to(ring, (len(ring), 3))


def _ground(borders: list[Picture]) -> Literal["dark", "light", "plain", "mixed"]:
    plain = [
        (np.abs(border - np.median(border, axis=0)).max(axis=1) <= _NEAR).mean()
        for border in borders
    ]
    if np.median(plain) < _PLAIN:
        return "mixed"
    light = float(np.mean([border.mean() > MID_GREY for border in borders]))
    if light >= _AGREE:
        return "light"
    return "dark" if light <= 1.0 - _AGREE else "plain"
