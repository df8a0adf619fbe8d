"""Where bytes come from: this machine's files, or anything that fsspec reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Protocol, cast

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
            raise StartupError(f"{path}: cannot be read: {exc.strerror}") from exc

    def open(self, name: str) -> BinaryIO:
        """Open one for reading."""
        return (self._path if self.single else self._path / name).open("rb")


def _walk(folder: Path) -> dict[str, int]:
    found = {}
    for file in folder.rglob("*"):
        name = file.relative_to(folder)
        if not is_hidden(name.as_posix()) and file.is_file():
            found[name.as_posix()] = file.stat().st_size
    return dict(sorted(found.items()))


def is_hidden(name: str) -> bool:
    """Whether a file lies in, or is, what its owner does not see; macOS puts such files into every zip."""
    return any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))


class Remote:
    """A file or folder by its URL.

    Raises:
        StartupError: fsspec, or what it needs for this kind of URL, is not installed, or there is nothing.
    """

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise StartupError(f"{url}: fsspec, which reads it, is not installed") from None
        try:
            self._fs, self._root = url_to_fs(url)
            found = self._fs.find(self._root, detail=True)
        except (ImportError, OSError, ValueError) as exc:
            raise StartupError(f"{url}: {exc}") from exc
        if not found:
            raise StartupError(f"{url}: there is nothing")
        self.single = list(found) == [self._root]
        start = len(self._root.rstrip("/")) + 1
        sizes = {
            path.rpartition("/")[2] if self.single else path[start:]: int(info.get("size") or 0)
            for path, info in found.items()
        }
        self.sizes: Mapping[str, int] = dict(
            sorted((name, size) for name, size in sizes.items() if not is_hidden(name))
        )

    def open(self, name: str) -> BinaryIO:
        """Open one for reading."""
        path = self._root if self.single else f"{self._root.rstrip('/')}/{name}"
        return cast(BinaryIO, self._fs.open(path, "rb"))


def files_of(source: str) -> Files:
    """The files behind a path or URL.

    Raises:
        StartupError: there are none.
    """
    return Remote(source) if "://" in source else Local(Path(source))


def check_apart(source: str, output: Path) -> None:
    """Refuse an output within its input, of which the next run would take it for a part.

    Raises:
        StartupError: it is.
    """
    if source and "://" not in source and output.resolve().is_relative_to(Path(source).resolve()):
        raise StartupError(f"{output}: lies within {source}; the next run would take it for pictures")
