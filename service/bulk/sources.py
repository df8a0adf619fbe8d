"""Numbered images of a source: files of a folder, members of a zip archive, or rows of Parquet files.

fsspec reads them, on this machine or behind a URL. An image that cannot be read is an error in its place. What
concerns the whole source is raised.
"""

import errno
import hashlib
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Final, NamedTuple, NoReturn

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from service.domain.errors import InvalidContent, RequestError, StartupError, TooLarge

IMAGES: Final = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
_CHUNK: Final = 1 << 16  # bytes
_MAX_CACHED: Final = 2  # row groups kept in memory; two batches in flight may span two neighbouring groups
# zipfile raises these for members that are damaged, encrypted, or compressed with an unknown method.
_DAMAGED: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)


class SourceItem(NamedTuple):
    """One image of a source: its name there, and its encoded bytes or the error that prevents reading them."""

    name: str
    content: bytes | RequestError


def open_source(source: str, *, column: str, limit: int) -> "Source":
    """Open an image, folder, `.zip` or `.parquet`; raises StartupError if there is none that can be read.

    ``column`` of a Parquet file holds the images: binary, or a struct with `bytes`. An image of more than ``limit``
    bytes becomes an error in its place.
    """
    files = SourceFiles(source)
    names = list(files.sizes)
    if files.single and names[0].lower().endswith(".zip"):
        return Archive(source, files.open(names[0]), limit)
    if images := [name for name in names if name.lower().endswith(IMAGES)]:
        return Files([(name, files.sizes[name]) for name in images], files.open, limit)
    if tables := [name for name in names if name.lower().endswith(".parquet")]:
        return Table(source, files, tables, column, limit)
    raise StartupError(f"{source}: holds no {' '.join(IMAGES)} .parquet, and is no .zip")


class SourceFiles:
    """The files of a source: one file (``single``), or a folder with all subfolders except hidden ones.

    ``sizes`` has the size of each file in bytes by its name relative to the source, sorted by name.
    """

    def __init__(self, source: str) -> None:
        try:
            with _as_os_error():
                # Only URLs are parsed: a local path may contain `::`, which chains URLs in fsspec.
                self._fs, root = url_to_fs(source) if is_url(source) else (LocalFileSystem(), os.path.abspath(source))
                sizes = _sizes(self._fs, root)
        except OSError as exc:
            raise StartupError(f"{exc.filename or source}: cannot be read: {exc.strerror or exc}") from exc
        if not sizes:
            raise StartupError(f"{source}: no such file or folder, or an empty one")
        self.single = list(sizes) == [root]
        folder = root.rpartition("/")[0] if self.single else root.rstrip("/")
        self._paths = {path[len(folder) :].lstrip("/"): path for path in sizes}
        self.sizes: Mapping[str, int] = {
            name: sizes[path] for name, path in sorted(self._paths.items()) if not _is_hidden(name)
        }

    def open(self, name: str) -> Any:
        """Open the file of this name in ``sizes`` for reading; opening and its methods raise nothing but `OSError`."""
        with _as_os_error():
            return _OsErrors(self._fs.open(self._paths[name], "rb"))


class Files:
    """Image files; ``parts`` has for each a tuple that begins with its name and changes with its content.

    As all sources it is thread-safe, has a fixed order, and a digest that changes when images are added, removed,
    renamed or resized. A failing read of the whole source, for example because the network is down, raises OSError.
    """

    _errors: tuple[type[Exception], ...] = (FileNotFoundError, PermissionError)  # that concern one image
    _reason = "it does not exist"

    def __init__(self, parts: Sequence[tuple[str | int, ...]], open_file: Callable[[str], Any], limit: int) -> None:
        self._names, self._open, self._limit = [str(part[0]) for part in parts], open_file, limit
        self.digest = _digest(parts)

    def __len__(self) -> int:
        return len(self._names)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def read(self, start: int, stop: int) -> list[SourceItem]:
        """Images ``start`` … ``stop − 1``."""
        return [SourceItem(name, self._content(name)) for name in self._names[start:stop]]

    def _content(self, name: str) -> bytes | RequestError:
        try:
            content = bytearray()
            with closing(self._open(name)) as file:
                # Some backends return less than they are asked for.
                while len(content) <= self._limit and (part := file.read(_CHUNK)):
                    content += part
        except self._errors as exc:
            return _unreadable(name, getattr(exc, "strerror", None) or self._reason)
        return bytes(content) if len(content) <= self._limit else _too_large(name, self._limit)


class Archive(Files):
    """Images of a zip archive, an open file that this object closes."""

    _errors, _reason = _DAMAGED, "this member of the archive is damaged or encrypted"

    def __init__(self, source: str, file: Any, limit: int) -> None:
        self._file = file
        try:
            file.read(1)  # zipfile would report a failing read as "not a zip archive"
            self._zip = zipfile.ZipFile(file)
        except (OSError, *_DAMAGED) as exc:
            file.close()
            failed = f"cannot be read: {exc.strerror or exc}" if isinstance(exc, OSError) else None
            raise StartupError(f"{source}: {failed or 'not a zip archive, or a damaged one'}") from exc
        members = {info.filename: info for info in self._zip.infolist() if info.filename.lower().endswith(IMAGES)}
        names = sorted(name for name in members if not _is_hidden(name))
        super().__init__([(name, members[name].file_size, members[name].CRC) for name in names], self._zip.open, limit)
        if not names:
            self.close()
            raise StartupError(f"{source}: holds no {' '.join(IMAGES)}")

    def close(self) -> None:
        """Close the archive."""
        self._zip.close()
        self._file.close()


class _Group(NamedTuple):
    """A row group of one file. Its first row is row ``first`` of all files; that of its file is row ``file_first``."""

    file: str
    number: int
    file_first: int
    first: int
    rows: int
    size: int


class Table:
    """A column of encoded images: binary, or a struct with `bytes` and `path` as in Hugging Face data sets.

    No file stays open, because there may be more than a process may open.
    """

    def __init__(self, source: str, files: SourceFiles, names: Sequence[str], column: str, limit: int) -> None:
        self._files, self._column, self._limit = files, column, limit
        self._lock = threading.Lock()
        self._read_cached = lru_cache(maxsize=_MAX_CACHED)(self._read_column)
        if find_spec("pyarrow") is None:
            raise StartupError(f"{source}: pyarrow is not installed; pip install 'ign-service[bulk]'")
        self._metadata = {name: self._read_metadata(f"{source}: {name}", name) for name in names}
        self._groups: list[_Group] = []
        rows = 0
        for name, metadata in self._metadata.items():
            file_first = rows
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                self._groups.append(_Group(name, number, file_first, rows, group.num_rows, group.total_byte_size))
                rows += group.num_rows
        self._rows = rows
        self.digest = _digest((group.file, group.number, group.rows, group.size, column) for group in self._groups)
        if not rows:
            raise StartupError(f"{source}: holds no rows")

    def __len__(self) -> int:
        return self._rows

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def read(self, start: int, stop: int) -> list[SourceItem]:
        """Images ``start`` … ``stop − 1``."""
        items: list[SourceItem] = []
        for group in self._groups:
            low, high = max(start, group.first), min(stop, group.first + group.rows)
            if low < high:
                names = [f"{group.file}#{row - group.file_first}" for row in range(low, high)]
                with self._lock:
                    column = self._read_cached(group)
                if column is None:
                    items += [SourceItem(name, _unreadable(name, "its part of the file is damaged")) for name in names]
                else:
                    values = column.slice(low - group.first, high - low).to_pylist()
                    items += [self._item(name, value) for name, value in zip(names, values, strict=True)]
        return items

    def _item(self, name: str, value: Any) -> SourceItem:
        if isinstance(value, dict):
            name, value = value.get("path") or name, value.get("bytes")
        if value is None:
            return SourceItem(name, _unreadable(name, "the value is null"))
        return SourceItem(name, value if len(value) <= self._limit else _too_large(name, self._limit))

    def _read_metadata(self, where: str, name: str) -> Any:
        from pyarrow import ArrowException, parquet

        try:
            with closing(self._files.open(name)) as file:
                opened = parquet.ParquetFile(file)
                _check_column(where, opened.schema_arrow, self._column)
                return opened.metadata
        except (ArrowException, OSError) as exc:
            raise StartupError(f"{where}: not Parquet, damaged, or unreadable: {exc}") from exc

    def _read_column(self, group: _Group) -> Any:
        """The column of one row group; None if it is damaged."""
        from pyarrow import ArrowException, parquet

        with closing(self._files.open(group.file)) as file:
            try:
                opened = parquet.ParquetFile(file, metadata=self._metadata[group.file])
                return opened.read_row_group(group.number, columns=[self._column]).column(0)
            except ArrowException:
                return None
            except OSError as exc:
                # Arrow reports damaged content as a plain OSError without errno; a failed read has one.
                if type(exc) is OSError and exc.errno is None:
                    return None
                raise


Source = Files | Table


def _check_column(where: str, schema: Any, column: str) -> None:
    from pyarrow import types

    if column not in schema.names:
        raise StartupError(f"{where}: has no column {column!r}; the columns are {', '.join(schema.names)}")
    kind = schema.field(column).type
    fields = [kind.field(i) for i in range(kind.num_fields)] if types.is_struct(kind) else []
    candidates = [field.type for field in fields if field.name == "bytes"] or [kind]
    if not any(types.is_binary(one) or types.is_large_binary(one) for one in candidates):
        raise StartupError(f"{where}: column {column!r} holds no bytes, but {kind}")


def _sizes(fs: Any, root: str) -> dict[str, int]:
    """Size in bytes by full path; empty if there is nothing."""
    if not isinstance(fs, LocalFileSystem):
        return {path: int(info.get("size") or 0) for path, info in fs.find(root, detail=True).items()}
    # fsspec's `find` silently skips subfolders that it may not list. A run must not miss them.
    if os.path.isfile(root):
        return {root: os.path.getsize(root)}
    sizes: dict[str, int] = {}
    for folder, subfolders, names in os.walk(root, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
        sizes |= {path: os.path.getsize(path) for name in names if os.path.isfile(path := os.path.join(folder, name))}
    return sizes


def is_url(source: str) -> bool:
    """Whether a source is a URL and not a local path."""
    return "://" in source


def _raise(exc: OSError) -> NoReturn:
    raise exc


def _is_hidden(name: str) -> bool:
    """Whether a file or one of its folders is hidden; macOS adds such files to every zip archive."""
    return any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))


class _OsErrors:
    """A file of fsspec whose methods raise only `OSError`."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._file, name)
        return _as_os_error()(attribute) if callable(attribute) else attribute


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


def _too_large(name: str, limit: int) -> RequestError:
    return TooLarge(f"{name}: more than IGN_MAX_BODY_BYTES={limit} bytes")


def _unreadable(name: str, why: str) -> RequestError:
    return InvalidContent.field(name, f"cannot be read: {why}", code="unreadable")


def _digest(parts: Iterable[tuple[str | int, ...]]) -> str:
    return hashlib.sha256("".join(map(repr, parts)).encode()).hexdigest()
