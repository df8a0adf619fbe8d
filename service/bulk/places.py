"""Folders that runs read and write: on this machine, or in an object store.

A file that is put appears whole or not at all. A new one appears only if there is none of its name,
so that of several workers the first one wins.
"""

import asyncio
import errno
import io
import os
import secrets
import shutil
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Final, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

from service.domain.errors import StartupError
from service.models.store import named, open_store

T = TypeVar("T")
Contents = Sequence[tuple[str, bytes]]  # names and contents of files
Files = Iterator[tuple[str, int, float]]
"""Name, size in bytes and Unix time of change of each file."""
MAX_BYTES: Final = 2**31 - 1  # of one file
_TEMP_SUFFIX: Final = ".partial"
_PATIENCE_S: Final = 60.0  # a store may restart
_RETRY: Final = {
    "max_retries": 1000,
    "retry_timeout": timedelta(seconds=_PATIENCE_S),
    "backoff": {
        "init_backoff": timedelta(milliseconds=200),
        "max_backoff": timedelta(seconds=10),
        "base": 2.0,
    },
}


class StoreError(OSError):
    """An object store failed, also when asked again; the text is one line."""


class Folder:
    """A folder of this machine, which need not exist."""

    def __init__(self, root: str) -> None:
        self.root = Path(os.path.abspath(root))

    def files(self, below: str = "") -> Files:
        """Every file in a subfolder; none if there is no such folder."""
        top = os.path.join(self.root, below)
        for folder, subfolders, names in os.walk(top, onerror=_raise) if os.path.isdir(top) else ():
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for path in (os.path.join(folder, name) for name in names):
                if os.path.exists(path) and stat.S_ISREG((found := os.stat(path)).st_mode):
                    yield path[len(os.path.join(self.root, "")) :], found.st_size, found.st_mtime

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if there is none of this name."""
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def open(self, name: str, size: int) -> IO[bytes]:
        """Open a file of this size to read parts of it; its methods raise nothing but `OSError`."""
        return (self.root / name).open("rb")

    def get(self, name: str, size: int = MAX_BYTES) -> bytes | None:
        """A file; None if there is none of this name. Of one with more than ``size`` bytes, some
        more than those.
        """
        try:
            with (self.root / name).open("rb") as file:
                return file.read(size + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, content: bytes | IO[bytes], *, new: bool = True) -> bool:
        """Write a file; False if it has to be ``new`` and is not."""
        target = self.root / name
        temp = self.root / f".{secrets.token_hex(8)}{_TEMP_SUFFIX}"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temp.open("wb") as file:
                shutil.copyfileobj(
                    io.BytesIO(content) if isinstance(content, bytes) else content, file
                )
            (os.link if new else os.replace)(temp, target)
        except FileExistsError:
            return False
        except FileNotFoundError:
            if not target.exists():
                raise
            return not new  # a worker that found the whole run complete has cleaned up
        except OSError as exc:
            if not new or exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            # a file system without hard links
            return not target.exists() and bool(temp.replace(target))
        finally:
            temp.unlink(missing_ok=True)
        return True

    def clean(self) -> None:
        """Remove what processes left that were killed while they put a file."""
        for leftover in self.root.glob(f".*{_TEMP_SUFFIX}"):
            leftover.unlink(missing_ok=True)

    @staticmethod
    async def each(function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
        """Results of a function of this folder for each item, in a thread, or as many as requests
        may be in flight.
        """
        return await asyncio.to_thread(lambda: [function(item) for item in items])


class Bucket:
    """What an object store has below a URL; methods as those of `Folder`, but they raise
    StoreError.

    Credentials and endpoint come from the variables of each provider, such as `AWS_ACCESS_KEY_ID`.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if (
            parts.query
            or parts.password
            or (parts.username and not parts.scheme.startswith("abfs"))
        ):
            url = f"{parts.scheme}://{parts.hostname}{parts.path}"
            raise StartupError(f"{url}: a URL must hold neither credentials nor a query")
        self.url = url
        self._store = open_store(url, url, _RETRY)
        import obstore

        self._api: Any = obstore
        # as many requests at a time
        self._threads = ThreadPoolExecutor(64, thread_name_prefix="store")

    def files(self, below: str = "") -> Files:
        """As those of a folder; the order is that of the store."""
        if type(self._store).__name__ == "HTTPStore":
            raise StoreError("a web server has single files, which can be read")
        with named(self.url, StoreError):
            for chunk in self._api.list(self._store, below or None, chunk_size=1000):
                yield from (
                    (each["path"], each["size"], each["last_modified"].timestamp())
                    for each in chunk
                )

    def size(self, name: str) -> int | None:
        """As that of a folder."""
        return self._unless_missing(lambda *where: int(self._api.head(*where)["size"]), name)

    def open(self, name: str, size: int) -> IO[bytes]:
        """As that of a folder."""
        # bytes of an archive or table in one request
        return io.BufferedReader(_Ranges(self._get_range, name, size), 4 << 20)

    def get(self, name: str, size: int = MAX_BYTES) -> bytes | None:
        """As that of a folder."""
        return self._unless_missing(lambda *where: _received(self._api.get(*where), size), name)

    def _get_range(self, name: str, start: int, length: int) -> bytes:
        with named(self.url, StoreError):
            content = _received(
                self._api.get(self._store, name, options={"range": (start, start + length)}), length
            )
        if len(content) != length:
            raise StoreError(f"{self.url}: {name}: another number of bytes than was asked for")
        return content

    def put(self, name: str, content: bytes | IO[bytes], *, new: bool = True) -> bool:
        """As that of a folder."""
        end = time.monotonic() + _PATIENCE_S
        with named(self.url, StoreError):
            while True:
                try:
                    if not isinstance(content, bytes):
                        content.seek(0)
                    self._api.put(self._store, name, content, mode="create" if new else "overwrite")
                except self._api.exceptions.AlreadyExistsError:
                    return False
                except self._api.exceptions.GenericError:
                    # obstore does not try again if the connection ends after a conditional write
                    # was sent. Here it may be done twice: its content is what the other one wrote.
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.2)
                else:
                    return True

    async def each(self, function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
        """As that of a folder."""
        run = asyncio.get_running_loop().run_in_executor
        return await asyncio.gather(*(run(self._threads, function, item) for item in items))

    def _unless_missing(self, call: Callable[..., T], name: str) -> T | None:
        with named(self.url, StoreError):
            try:
                return call(self._store, name)
            except FileNotFoundError as exc:
                if "NoSuchBucket" in str(exc):
                    raise
        return None


Place = Folder | Bucket


def _received(found: Any, size: int) -> bytes:
    """The content of an answer, which a store may send without end: no piece after more than
    ``size`` bytes.
    """
    content = bytearray()
    for piece in found.stream(min_chunk_size=1 << 16):
        content += piece
        if len(content) > size:
            break
    return bytes(content)


@dataclass(eq=False)
class _Ranges(io.RawIOBase):
    """An object as a file of which parts are read."""

    get_range: Callable[[str, int, int], Any]
    name: str
    size: int
    at: int = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self.size - self.at))
        if length:
            buffer[:length] = self.get_range(self.name, self.at, length)
        self.at += length
        return length


def is_url(source: str) -> bool:
    """Whether a source or an output is a URL and not a local path."""
    return "://" in source


def absolute(place: str) -> str:
    """A URL, or a path that holds in other folders too."""
    return place.rstrip("/") if is_url(place) else str(Path(place).resolve())


def locate(source: str) -> tuple[Place, str]:
    """The folder of a source, and the name in it of the one file that the source is; empty if it is
    the folder.
    """
    if not is_url(source):
        path = Path(os.path.abspath(source))
        return (Folder(str(path.parent)), path.name) if path.is_file() else (Folder(str(path)), "")
    folder, _, name = source.rstrip("/").rpartition("/")
    # `s3:/` is no folder
    if not folder.endswith("/") and (place := Bucket(folder)).size(unquote(name)) is not None:
        return place, unquote(name)
    return Bucket(source), ""


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A group of tasks of which the first exception cancels the others, and is raised without an
    exception group.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


def _raise(exc: OSError) -> NoReturn:
    raise exc
