"""Files of this machine or behind a URL, read through fsspec."""

import errno
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from service.domain.errors import StartupError


class SourceFiles:
    """The files of a source: one file, or a folder with all subfolders except hidden ones.

    Args:
        source: local path, or a URL that fsspec supports.

    Attributes:
        sizes: size of each file in bytes by its name relative to the source, sorted by name.
        single: the source is one file.

    Raises:
        StartupError: the source does not exist or cannot be listed, or the package for this kind of URL is missing.
    """

    def __init__(self, source: str) -> None:
        try:
            with _as_os_error():
                # Only URLs are parsed: a local path may contain `::`, which chains URLs in fsspec.
                located: tuple[Any, str] = url_to_fs(source) if is_url(source) else _local(source)
                self._fs, self._root = located
                sizes = self._sizes()
        except OSError as exc:
            raise StartupError(f"{exc.filename or source}: cannot be read: {exc.strerror or exc}") from exc
        if not sizes:
            raise StartupError(f"{source}: no such file or folder, or an empty one")
        self.single = list(sizes) == [self._root]
        prefix = len(self._root.rstrip("/"))  # 0 for the root of a file system
        named = {self._root.rpartition("/")[2] if self.single else path[prefix:].lstrip("/"): path for path in sizes}
        self.sizes: Mapping[str, int] = {name: sizes[named[name]] for name in sorted(named) if not is_hidden(name)}

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; it supports seeking.

        Args:
            name: a key of ``sizes``.

        Raises:
            OSError: the file cannot be opened; its reads raise nothing else either.
        """
        path = self._root if self.single else f"{self._root.rstrip('/')}/{name}"
        with _as_os_error():
            return cast(BinaryIO, io.BufferedReader(_FsspecFile(self._fs.open(path, "rb"))))

    def _sizes(self) -> dict[str, int]:
        """Size in bytes by full path; empty if there is nothing."""
        if isinstance(self._fs, LocalFileSystem):
            return _local_sizes(self._root)
        return {path: int(info.get("size") or 0) for path, info in self._fs.find(self._root, detail=True).items()}


def is_url(source: str) -> bool:
    """Whether a source is a URL and not a local path."""
    return "://" in source


def is_hidden(name: str) -> bool:
    """Whether a file or one of its folders is hidden; macOS adds such files to every zip archive."""
    return any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))


def check_output(output: str, source: str) -> None:
    """Check that the output is a local folder outside of the input.

    Raises:
        StartupError: the output is a URL, or lies inside the input, where the next run would read it as input.
    """
    if is_url(output):
        raise StartupError(f"{output}: only the input may be a URL; the output must be a local folder")
    if source and not is_url(source) and Path(output).resolve().is_relative_to(Path(source).resolve()):
        raise StartupError(f"{output}: lies within {source}; the next run would read it as input")


def _local(source: str) -> tuple[LocalFileSystem, str]:
    return LocalFileSystem(), os.path.abspath(source)


def _local_sizes(root: str) -> dict[str, int]:
    # fsspec's `find` silently skips subfolders that it may not list. A run must not miss them.
    if os.path.isfile(root):
        return {root: os.path.getsize(root)}
    sizes = {}
    for folder, subfolders, names in os.walk(root, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not is_hidden(name)]
        for path in (os.path.join(folder, name) for name in names if not is_hidden(name)):
            if os.path.isfile(path):
                sizes[path] = os.path.getsize(path)
    return sizes


def _raise(exc: OSError) -> NoReturn:
    raise exc


class _FsspecFile(io.RawIOBase):
    """A file of fsspec whose methods raise only `OSError`."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        with _as_os_error():
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any, /) -> int:
        with _as_os_error():
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Convert the exceptions of fsspec's backends, which may be of any type, to `OSError` with an error number."""
    try:
        yield
    except OSError as exc:
        if type(exc) is OSError and exc.errno is None:
            raise OSError(errno.EIO, str(exc)) from exc
        raise
    except Exception as exc:
        raise OSError(errno.EIO, str(exc) or type(exc).__name__) from exc
