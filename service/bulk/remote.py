"""Files by URL: anything that fsspec reads."""

import errno
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from service.bulk.files import is_hidden
from service.domain.errors import StartupError


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
            with _as_os_error():
                self._fs, self._root = url_to_fs(url)
                found = self._fs.find(self._root, detail=True)
        except OSError as exc:
            raise StartupError(f"{url}: {exc.strerror or exc}") from exc
        if not found:
            raise StartupError(f"{url}: there is nothing")
        self.single = list(found) == [self._root]
        start = len(self._root.rstrip("/"))  # 0 where the root of a file system is meant
        sizes = {
            path.rpartition("/")[2] if self.single else path[start:].lstrip("/"): int(info.get("size") or 0)
            for path, info in found.items()
        }
        self.sizes: Mapping[str, int] = dict(
            sorted((name, size) for name, size in sizes.items() if not is_hidden(name))
        )

    def open(self, name: str) -> BinaryIO:
        """Open one for reading."""
        path = self._root if self.single else f"{self._root.rstrip('/')}/{name}"
        with _as_os_error():
            return cast(BinaryIO, io.BufferedReader(_Steady(self._fs.open(path, "rb"))))


class _Steady(io.RawIOBase):
    """A file of fsspec's, of whose errors all are `OSError`."""

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
    """The packages behind fsspec let through whatever the libraries below them raise."""
    try:
        yield
    except OSError as exc:
        if type(exc) is OSError and exc.errno is None:
            raise OSError(errno.EIO, str(exc)) from exc
        raise
    except Exception as exc:
        raise OSError(errno.EIO, str(exc) or type(exc).__name__) from exc
