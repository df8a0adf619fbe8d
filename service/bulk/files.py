"""Where bytes come from: this machine's files; `remote` has the others."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

from service.domain.errors import StartupError


class Files(Protocol):
    """The files behind a source.

    Args:
        sizes: bytes of each, by name relative to the source, in order of their names.
        single: the source is one file, and no folder.
    """

    sizes: Mapping[str, int]
    single: bool

    def open(self, name: str) -> BinaryIO:
        """Open one for reading, at any position.

        Raises:
            OSError: it cannot be.
        """
        ...


class Local:
    """A file or folder of this machine; in folders, hidden files and folders are passed over.

    Raises:
        StartupError: there is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.single = path.is_file()
        if not self.single and not path.is_dir():
            raise StartupError(f"{path}: no such file or folder")
        try:
            self.sizes: Mapping[str, int] = {path.name: path.stat().st_size} if self.single else _walk(path)
        except OSError as exc:
            raise StartupError(f"{exc.filename or path}: cannot be read: {exc.strerror}") from exc

    def open(self, name: str) -> BinaryIO:
        """Open one for reading."""
        return (self._path if self.single else self._path / name).open("rb")


def _walk(folder: Path) -> dict[str, int]:
    found = {}
    for here, below, names in os.walk(folder, onerror=_refuse):  # pathlib passes over what may not be listed
        below[:] = [name for name in below if not is_hidden(name)]
        for file in (Path(here, name) for name in names if not is_hidden(name)):
            if file.is_file():
                found[file.relative_to(folder).as_posix()] = file.stat().st_size
    return dict(sorted(found.items()))


def _refuse(exc: OSError) -> NoReturn:
    raise exc


def is_hidden(name: str) -> bool:
    """Whether a file lies in, or is, what its owner does not see; macOS puts such files into every zip."""
    return any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))


def check_local(output: str) -> None:
    """Refuse an output by URL: `Path` would take it for a folder of a strange name.

    Raises:
        StartupError: it is one.
    """
    if "://" in output:
        raise StartupError(f"{output}: only the input may be a URL; the output is a folder, which can be copied there")


def check_apart(source: str, output: Path) -> None:
    """Refuse an output within its input, of which the next run would take it for a part.

    Raises:
        StartupError: it is.
    """
    if source and "://" not in source and output.resolve().is_relative_to(Path(source).resolve()):
        raise StartupError(f"{output}: lies within {source}; the next run would take it for pictures")
