"""Published data sets: how to recognise them by their content, their licences, and where they are
downloaded from.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.errors import UserError
from model_export.files import atomic_write

Arrays = dict[str, NDArray[Any]]
"""`x_train`, `x_test`: uint8 pictures; `y_train`, `y_test`: labels, if there are any."""

_CACHE: Final = "~/.cache/ign-service"


class KnownSet(NamedTuple):
    """A published data set."""

    licence: str  # `unknown` if it is not known
    torchvision: str = ""  # name of the class that downloads it; empty if nothing does
    # `content_digest` of the set, or for pictures in files the digest of their names and contents.
    # Empty: the set is not checked.
    sha256: str = ""
    drawn: bool = False  # by this program, in place of a download


_FASHION: Final = "b7ec5add42a42a2b36a522e440fd4a1fea95b83181060595822e387f2f2ac9de"
_AVATARS: Final = "d2082e5a1640d31982539c789563875b339d26ae58dbdf61c8b020a8637ff6ff"
_CELEBA: Final = "5ee93006da3ead4e860f28769e7614c7924fe2a49685cf3e8f2fe2286e83adff"

KNOWN_SETS: Final[Mapping[str, KnownSet]] = {
    "mnist": KnownSet(
        "CC BY-SA 3.0", "MNIST", "ac969aa42fb53e74925b2bdb3b90b0a45891b6ac344ab2c92d66b61a87b59898"
    ),
    "fashion_mnist": KnownSet("MIT", "FashionMNIST", _FASHION),
    "kmnist": KnownSet("CC BY-SA 4.0", "KMNIST"),
    "cifar10": KnownSet("unknown", "CIFAR10"),
    "svhn": KnownSet("non-commercial", "SVHN"),
    "avatars64": KnownSet("CC BY 4.0", "", _AVATARS, drawn=True),
    "scans": KnownSet("PSF-2.0 (words), see scikit-image (photographs)", drawn=True),
    "celeba64": KnownSet("non-commercial research", "", _CELEBA),
}


def available() -> list[str]:
    """The names of the sets that `--data` takes: downloaded or drawn."""
    return sorted(name for name, known in KNOWN_SETS.items() if known.torchvision or known.drawn)


def recognise(sha256: str) -> str:
    """The name of the set with this content; empty if it is none of them."""
    return next((name for name, known in KNOWN_SETS.items() if known.sha256 == sha256), "")


def content_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of pictures (N, C, H, W) uint8 and labels (N,): the same for every file format and
    order of arrays.
    """
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        canonical = np.ascontiguousarray(array, dtype=np.uint8 if array.ndim > 1 else "<i8")
        digest.update(f"{name} {canonical.shape}\0".encode())
        digest.update(canonical.data)
    return digest.hexdigest()


def download(name: str) -> Arrays:
    """Pictures and labels of a set, through torchvision or drawn. The files stay in
    `~/.cache/ign-service`.
    """
    if KNOWN_SETS[name].drawn:
        return _drawn(name)
    from torchvision import datasets

    root = str(Path(_CACHE).expanduser())
    class_name = KNOWN_SETS[name].torchvision
    dataset_class = getattr(datasets, class_name)
    svhn = class_name == "SVHN"
    arrays: Arrays = {}
    try:
        for split in ("train", "test"):
            chosen = {"split": split} if svhn else {"train": split == "train"}
            part = dataset_class(root, **chosen, download=True)
            arrays[f"x_{split}"] = part.data
            arrays[f"y_{split}"] = part.labels if svhn else part.targets
    except (OSError, RuntimeError) as exc:
        raise UserError(f"--data {name}: the download failed: {str(exc).strip()}") from exc
    return {key: np.asarray(array) for key, array in arrays.items()}


def _drawn(name: str) -> Arrays:
    from model_export.data import avatars, damages, pages, scans

    modules = (avatars,) if name == "avatars64" else (damages, pages, scans)
    sources = [Path(str(module.__file__)).read_bytes() for module in modules]
    # after a change of these modules, another file
    drawn_by = hashlib.sha256(b"".join(sources)).hexdigest()[:12]
    file = Path(_CACHE).expanduser() / f"{name}-{drawn_by}.npz"
    if not file.is_file():
        drawn = avatars.draw_avatars() if name == "avatars64" else scans.draw_scans()
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as opened:
            np.savez_compressed(opened, allow_pickle=False, **drawn)
    with np.load(file) as arrays:
        return dict(arrays)


def check_content(name: str, sha256: str) -> None:
    """Reject a downloaded set that does not have the content that this program knows."""
    # another DiceBear draws other avatars
    expected = "" if KNOWN_SETS[name].drawn else KNOWN_SETS[name].sha256
    if expected and sha256 != expected:
        raise UserError(
            f"--data {name}: the download is not the published set: SHA-256 {sha256}, "
            f"expected {expected}; delete {_CACHE}/{KNOWN_SETS[name].torchvision} and try "
            f"again"
        )
