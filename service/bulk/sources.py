"""Numbered images of a source: files of a folder, members of a zip archive, or rows of Parquet files.

An image that cannot be read is an error in its place. What concerns the whole source is raised.
"""

import asyncio
import hashlib
import json
import os
import sqlite3
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import lru_cache
from importlib.util import find_spec
from typing import IO, Any, Final, NamedTuple

from service.bulk.places import Folder, locate
from service.domain.errors import InvalidContent, RequestError, StartupError, TooLarge

IMAGES: Final = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
_KINDS: Final = (IMAGES, (".parquet",), (".zip",))  # the first of which there is a file is read
_PART: Final = 1 << 16  # names in one file of a listing
_MAX_CACHED: Final = 2  # row groups and parts kept in memory; batches in flight may span two neighbouring ones
# zipfile raises these for members that are damaged, encrypted, or compressed with an unknown method.
_DAMAGED: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)

Rows = list[tuple[str, int]]  # names and sizes in bytes


class SourceItem(NamedTuple):
    """One image of a source: its name there, and its encoded bytes or the error that prevents reading them."""

    name: str
    content: bytes | RequestError


class Listing:
    """The files of one kind of a source, without hidden ones, in the order of their names.

    It is made once, in a temporary database on disk, and `parts` go into the output. Workers and later runs read them
    as needed with ``get``, if they have ``known``, what `summary` was.
    """

    def __init__(self, source: str, known: dict[str, Any] | None, get: Callable[[str], bytes | None]) -> None:
        self.source, self._get, self._is_new = source, get, not known
        self._database = sqlite3.connect("", check_same_thread=False)  # "": removed when closed
        weakref.finalize(self, self._database.close)
        self.part = lru_cache(maxsize=_MAX_CACHED)(self._part)
        try:
            self.place, single = locate(source)
            self.files = known["files"] if known else self._list(single)
        except (OSError, sqlite3.Error) as exc:
            where, why = getattr(exc, "filename", None) or source, getattr(exc, "strerror", None) or str(exc)
            raise StartupError(f"{where}: cannot be read: {why.removeprefix(f'{source}: ')}") from exc
        self.digest: str = known["digest"] if known else _digest(row for n in self._numbers() for row in self.part(n))
        self.summary = {"files": self.files, "digest": self.digest}

    def parts(self) -> Iterator[tuple[str, bytes]]:
        """The files for the output."""
        for number in self._numbers():
            yield self._name(number), "".join(f"{json.dumps(row)}\n" for row in self.part(number)).encode()

    def rows(self, start: int, stop: int) -> Rows:
        """Files ``start`` … ``stop − 1``."""
        rows: Rows = []
        while (at := start + len(rows)) < stop:
            rows += self.part(at // _PART)[at % _PART : at % _PART + stop - at]
        return rows

    def _numbers(self) -> range:
        return range(-(-self.files // _PART))

    def _name(self, number: int) -> str:
        return f"source-{self.digest[:12]}/{number:06}.jsonl"

    def _part(self, number: int) -> Rows:
        if self._is_new:
            query = "SELECT name, size FROM files WHERE rowid > ? LIMIT ?"
            found = self._database.execute(query, (number * _PART, _PART))
            return [(os.fsdecode(name), size) for name, size in found]
        if (content := self._get(self._name(number))) is None:
            raise FileNotFoundError(f"{self._name(number)}: is gone from the output; use another folder")
        return [(name, size) for name, size in map(json.loads, content.splitlines())]

    def _list(self, single: str) -> int:
        """Sort names on disk, as stores differ in their order, and a folder has none; returns how many there are."""
        database, total = self._database, 0
        database.execute("CREATE TABLE found (name BLOB, size INTEGER, kind INTEGER)")

        def found() -> Iterator[tuple[bytes, int, int]]:
            nonlocal total
            for name, size, *_ in [(single, self.place.size(single))] if single else self.place.files():
                total += 1
                kind = next((n for n, ends in enumerate(_KINDS) if name.lower().endswith(ends)), None)
                if kind is not None and not _is_hidden(name) and (single or _KINDS[kind] != (".zip",)):
                    yield os.fsencode(name), size or 0, kind

        database.executemany("INSERT INTO found VALUES (?, ?, ?)", found())
        first_kind = "FROM found WHERE kind = (SELECT min(kind) FROM found)"
        database.execute(f"CREATE TABLE files AS SELECT name, size {first_kind} ORDER BY name")
        (files,) = database.execute("SELECT count(*) FROM files").fetchone()
        if not files:
            holds = f"holds no {' '.join(IMAGES)} .parquet, and is no .zip"
            raise StartupError(f"{self.source}: {holds if total else 'no such file or folder, or an empty one'}")
        return int(files)


def open_source(listing: Listing, *, column: str, limit: int) -> "Files":
    """Open an image, folder, `.zip` or `.parquet`; raises StartupError if there is none that can be read.

    ``column`` of a Parquet file holds the images: binary, or a struct with `bytes`. An image of more than ``limit``
    bytes becomes an error in its place.
    """
    name, size = listing.rows(0, 1)[0]
    if name.lower().endswith(".zip"):
        return Archive(listing, listing.place.open(name, size), limit)
    if name.lower().endswith(IMAGES):
        return Files(listing, limit)
    return Table(listing, column, limit)


class Files:
    """Image files.

    As all sources it is thread-safe, has a fixed order, and a digest that changes when images are added, removed,
    renamed or resized. A failing read of the whole source, for example because the network is down, raises OSError.
    """

    def __init__(self, listing: Listing, limit: int) -> None:
        self.listing, self._limit = listing, limit
        self.images, self.digest, self._each = listing.files, listing.digest, listing.place.each

    def close(self) -> None:
        """Close what is open."""

    def size(self, start: int, stop: int) -> int:
        """Bytes of images ``start`` … ``stop − 1``."""
        return sum(min(size, self._limit) for _, size in self._rows(start, stop))

    async def fetch(self, start: int, stop: int) -> list[SourceItem]:
        """Images ``start`` … ``stop − 1``."""
        return await self._each(self._item, await asyncio.to_thread(self._rows, start, stop))

    def _item(self, row: tuple[str, int]) -> SourceItem:
        name, size = row
        content = self._content(name) if size <= self._limit else _too_large(name, self._limit)
        grown = not isinstance(content, RequestError) and len(content) > self._limit
        return SourceItem(name, _too_large(name, self._limit) if grown else content)

    def _rows(self, start: int, stop: int) -> Rows:
        return self.listing.rows(start, stop)

    def _content(self, name: str) -> bytes | RequestError:
        try:
            content = self.listing.place.get(name)
        except PermissionError as exc:  # which concerns one file
            return _unreadable(name, str(exc.strerror))
        return _unreadable(name, "it does not exist any more") if content is None else content


class Archive(Files):
    """Images of a zip archive, an open file that this object closes."""

    def __init__(self, listing: Listing, file: IO[bytes], limit: int) -> None:
        super().__init__(listing, limit)
        self._file, self._each = file, Folder.each
        try:
            file.read(1)  # zipfile would report a failing read as "not a zip archive"
            self._zip = zipfile.ZipFile(file)
        except (OSError, *_DAMAGED) as exc:
            file.close()
            failed = f"cannot be read: {exc.strerror or exc}" if isinstance(exc, OSError) else None
            raise StartupError(f"{listing.source}: {failed or 'not a zip archive, or a damaged one'}") from exc
        members = {info.filename: info for info in self._zip.infolist() if info.filename.lower().endswith(IMAGES)}
        self._members = [members[name] for name in sorted(members) if not _is_hidden(name)]
        self.images = len(self._members)
        self.digest = _digest((member.filename, member.file_size, member.CRC) for member in self._members)
        if not self.images:
            self.close()
            raise StartupError(f"{listing.source}: holds no {' '.join(IMAGES)}")

    def close(self) -> None:
        """Close the archive."""
        self._zip.close()
        self._file.close()

    def _rows(self, start: int, stop: int) -> Rows:
        return [(member.filename, member.file_size) for member in self._members[start:stop]]

    def _content(self, name: str) -> bytes | RequestError:
        try:
            return self._zip.read(name)
        except _DAMAGED:
            return _unreadable(name, "this member of the archive is damaged or encrypted")


class _Group(NamedTuple):
    """A row group of one file. Its first row is row ``first`` of all files; that of its file is row ``file_first``."""

    file: str
    number: int
    file_first: int
    first: int
    rows: int
    size: int


class Table(Files):
    """A column of encoded images: binary, or a struct with `bytes` and `path` as in Hugging Face data sets.

    No file stays open, because there may be more than a process may open.
    """

    def __init__(self, listing: Listing, column: str, limit: int) -> None:
        super().__init__(listing, limit)
        source, self._column = listing.source, column
        self._sizes = dict(listing.rows(0, listing.files))
        self._lock = threading.Lock()
        self._read_cached = lru_cache(maxsize=_MAX_CACHED)(self._read_column)
        if find_spec("pyarrow") is None:
            raise StartupError(f"{source}: pyarrow is not installed; pip install 'ign-service[bulk]'")
        self._metadata = {name: self._read_metadata(f"{source}: {name}", name) for name in self._sizes}
        self._groups: list[_Group] = []
        self.images = 0
        for name, metadata in self._metadata.items():
            file_first = self.images
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                rows, size = group.num_rows, group.total_byte_size
                self._groups.append(_Group(name, number, file_first, self.images, rows, size))
                self.images += rows
        self.digest = _digest((group.file, group.number, group.rows, group.size, column) for group in self._groups)
        if not self.images:
            raise StartupError(f"{source}: holds no rows")

    def size(self, start: int, stop: int) -> int:
        """As that of `Files`, about."""
        return (stop - start) * sum(group.size for group in self._groups) // self.images

    async def fetch(self, start: int, stop: int) -> list[SourceItem]:
        """Images ``start`` … ``stop − 1``."""
        return await asyncio.to_thread(self._read, start, stop)

    def _read(self, start: int, stop: int) -> list[SourceItem]:
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
                    items += [self._row(name, value) for name, value in zip(names, values, strict=True)]
        return items

    def _row(self, name: str, value: Any) -> SourceItem:
        if isinstance(value, dict):
            name, value = value.get("path") or name, value.get("bytes")
        if value is None:
            return SourceItem(name, _unreadable(name, "the value is null"))
        return SourceItem(name, value if len(value) <= self._limit else _too_large(name, self._limit))

    def _open(self, name: str) -> IO[bytes]:
        return self.listing.place.open(name, self._sizes[name])

    def _read_metadata(self, where: str, name: str) -> Any:
        from pyarrow import ArrowException, parquet

        try:
            with closing(self._open(name)) as file:
                opened = parquet.ParquetFile(file)
                _check_column(where, opened.schema_arrow, self._column)
                return opened.metadata
        except (ArrowException, OSError) as exc:
            raise StartupError(f"{where}: not Parquet, damaged, or unreadable: {exc}") from exc

    def _read_column(self, group: _Group) -> Any:
        """The column of one row group; None if it is damaged."""
        from pyarrow import ArrowException, parquet

        with closing(self._open(group.file)) as file:
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


def _check_column(where: str, schema: Any, column: str) -> None:
    from pyarrow import types

    if column not in schema.names:
        raise StartupError(f"{where}: has no column {column!r}; the columns are {', '.join(schema.names)}")
    kind = schema.field(column).type
    fields = [kind.field(i) for i in range(kind.num_fields)] if types.is_struct(kind) else []
    candidates = [field.type for field in fields if field.name == "bytes"] or [kind]
    if not any(types.is_binary(one) or types.is_large_binary(one) for one in candidates):
        raise StartupError(f"{where}: column {column!r} holds no bytes, but {kind}")


def _is_hidden(name: str) -> bool:
    """Whether a file or one of its folders is hidden; macOS adds such files to every zip archive."""
    return any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))


def _too_large(name: str, limit: int) -> RequestError:
    return TooLarge(f"{name}: more than IGN_MAX_BODY_BYTES={limit} bytes")


def _unreadable(name: str, why: str) -> RequestError:
    return InvalidContent.field(name, f"cannot be read: {why}", code="unreadable")


def _digest(parts: Iterable[tuple[str | int, ...]]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()
