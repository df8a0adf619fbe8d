"""Numbered images of a source: files of a folder, members of a zip archive, or rows of Parquet
files.

An image that cannot be read is an error in its place. What concerns the whole source is raised.
"""

import asyncio
import hashlib
import json
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from importlib.util import find_spec
from itertools import accumulate, islice, repeat
from typing import IO, Any, Final, NamedTuple

from service.bulk.pipeline import Item
from service.bulk.places import Folder, locate
from service.domain.errors import InvalidContent, RequestError, StartupError, TooLarge

IMAGES: Final = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
_AT_ONCE: Final = 32 << 20  # bytes of images, unless it is one
_MAX_GROUP: Final = 2**31  # bytes of a row group before compression
# zipfile raises these for members that are damaged, encrypted, or compressed with an unknown
# method.
_DAMAGED: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)

Row = tuple[str, int]  # name and size in bytes
Get = Callable[[str], bytes | None]  # the content of a file of the output


class _Group(NamedTuple):
    """A row group of a table."""

    file: str
    number: int
    rows: int
    bytes: int  # before compression


class Listing:
    """The files of one kind of a source, without hidden ones, in the order of their names.

    It is made once, and written into a `file` of the output. From there ``get`` reads it for
    workers and later runs, which have ``known``, what `summary` was.
    """

    def __init__(self, source: str, known: dict[str, Any] | None, get: Get) -> None:
        self.source = source
        try:
            self.place, single = locate(source)
            if known:
                self.digest: str = known["digest"]
                self.rows = self._recorded(get)
            else:
                self.rows = self._found(single)
                self.digest = _digest(self.rows)
        except OSError as exc:
            why = exc.strerror or str(exc)
            raise StartupError(
                f"{exc.filename or source}: cannot be read: {why.removeprefix(f'{source}: ')}"
            ) from exc
        self.summary = {"files": len(self.rows), "digest": self.digest}

    @property
    def file(self) -> str:
        """The name of the file in the output."""
        return f"source-{self.digest[:12]}/000000.jsonl"

    def write(self, file: IO[bytes]) -> None:
        """Write that file: a line for each name."""
        file.writelines(json.dumps(row).encode() + b"\n" for row in self.rows)

    def _recorded(self, get: Get) -> list[Row]:
        content = get(self.file)
        if content is None:
            raise FileNotFoundError(f"{self.file}: is gone from the output; use another folder")
        return [(name, size) for name, size in map(json.loads, content.splitlines())]

    def _found(self, single: str) -> list[Row]:
        """The files of the first kind of which there is one; sorted, as stores differ in their
        order, and a folder has none.
        """
        found = (
            [(single, self.place.size(single) or 0)]
            if single
            else [(name, size) for name, size, _ in self.place.files()]
        )
        for ends in (IMAGES, (".parquet",), (".zip",) if single else ()):
            if rows := _visible(found, ends):
                return rows
        holds = f"holds no {' '.join(IMAGES)} .parquet, and is no .zip"
        raise StartupError(
            f"{self.source}: {holds if found else 'no such file or folder, or an empty one'}"
        )


def open_source(listing: Listing, *, column: str, limit: int) -> "Files":
    """Open an image, folder, `.zip` or `.parquet`; raises StartupError if there is none that can be
    read.

    ``column`` of a Parquet file holds the images: binary, or a struct with `bytes`. An image of
    more than ``limit`` bytes, or of more than are listed, becomes an error in its place, and is not
    read.
    """
    name, size = listing.rows[0]
    if name.lower().endswith(".zip"):
        return Archive(listing, listing.place.open(name, size), limit)
    if name.lower().endswith(IMAGES):
        return Files(listing, limit)
    return Table(listing, column, limit)


class Files:
    """Image files.

    As all sources it is thread-safe, has a fixed order, and a digest that changes when images are
    added, removed, renamed or resized. A failing read of the whole source, for example because the
    network is down, raises OSError.
    """

    def __init__(self, listing: Listing, limit: int) -> None:
        self.listing = listing
        self._limit = limit
        self._rows = listing.rows
        self.images = len(listing.rows)
        self.digest = listing.digest
        self._each = listing.place.each

    async def fetch(self, start: int, stop: int) -> list[Item]:
        """Images ``start`` … ``stop − 1``; fewer, but at least one, if they have many bytes."""
        rows = self._rows[start:stop]
        count = sum(total <= _AT_ONCE for total in accumulate(size for _, size in rows))
        return await self._each(self._item, rows[: max(1, count)])

    def _item(self, row: Row) -> Item:
        name, size = row
        content = (
            self._content(name, size) if size <= self._limit else _too_large(name, self._limit)
        )
        grown = not isinstance(content, RequestError) and len(content) > size
        return Item(
            _unreadable(name, "it has more bytes than are listed") if grown else content, name
        )

    def _content(self, name: str, size: int) -> bytes | RequestError:
        try:
            content = self.listing.place.get(name, size)
        except PermissionError as exc:  # which concerns one file
            return _unreadable(name, str(exc.strerror))
        return _unreadable(name, "it does not exist any more") if content is None else content


class Archive(Files):
    """Images of a zip archive, an open file that is closed with this object."""

    def __init__(self, listing: Listing, file: IO[bytes], limit: int) -> None:
        super().__init__(listing, limit)
        self._each = Folder.each
        weakref.finalize(self, file.close)
        try:
            file.read(1)  # zipfile would report a failing read as "not a zip archive"
            self._zip = zipfile.ZipFile(file)
        except OSError as exc:
            raise StartupError(f"{listing.source}: cannot be read: {exc.strerror or exc}") from exc
        except _DAMAGED as exc:
            raise StartupError(f"{listing.source}: not a zip archive, or a damaged one") from exc
        members = {info.filename: info for info in self._zip.infolist()}
        self._rows = _visible(((name, info.file_size) for name, info in members.items()), IMAGES)
        self.images = len(self._rows)
        self.digest = _digest((*row, members[row[0]].CRC) for row in self._rows)
        if not self.images:
            raise StartupError(f"{listing.source}: holds no {' '.join(IMAGES)}")

    def _content(self, name: str, size: int) -> bytes | RequestError:
        try:
            with self._zip.open(name) as member:
                return member.read(size + 1)
        except _DAMAGED:
            return _unreadable(name, "this member of the archive is damaged or encrypted")


class Table(Files):
    """A column of encoded images: binary, or a struct with `bytes` and `path` as in Hugging Face
    data sets.

    No file stays open, because there may be more than a process may open.
    """

    def __init__(self, listing: Listing, column: str, limit: int) -> None:
        super().__init__(listing, limit)
        source = listing.source
        self._column = column
        self._sizes = dict(listing.rows)
        self._lock = threading.Lock()
        self._readers: dict[int, Iterator[Item]] = {}  # by the row that comes next
        require_pyarrow(source)
        self._metadata = {
            name: self._read_metadata(f"{source}: {name}", name) for name in self._sizes
        }
        self._groups = [
            _Group(
                name,
                number,
                metadata.row_group(number).num_rows,
                metadata.row_group(number).total_byte_size,
            )
            for name, metadata in self._metadata.items()
            for number in range(metadata.num_row_groups)
        ]
        self.images = sum(group.rows for group in self._groups)
        self.digest = _digest((*group, column) for group in self._groups)
        if not self.images:
            raise StartupError(f"{source}: holds no rows")

    async def fetch(self, start: int, stop: int) -> list[Item]:
        """As that of `Files`; cheapest where an earlier call has ended."""
        return await asyncio.to_thread(self._read, start, stop)

    def _read(self, start: int, stop: int) -> list[Item]:
        items = list[Item]()
        size = 0
        with self._lock:
            rows = self._readers.pop(start, None) or self._rows_from(start)
            while start + len(items) < stop and size <= _AT_ONCE:
                items.append(next(rows))
                source = items[-1].source
                size += len(source) if isinstance(source, bytes) else 0
            self._readers[start + len(items)] = rows
            for oldest in [*self._readers][:-2]:  # as two shards are processed at a time
                del self._readers[oldest]
        return items

    def _rows_from(self, start: int) -> Iterator[Item]:
        passed = 0  # rows
        in_file = dict.fromkeys(self._sizes, 0)
        for group in self._groups:
            if start < passed + group.rows:
                values = islice(self._values(group), max(0, start - passed), group.rows)
                for row, value in enumerate(values, in_file[group.file] + max(0, start - passed)):
                    yield self._row(f"{group.file}#{row}", value)
            passed += group.rows
            in_file[group.file] += group.rows

    def _row(self, name: str, value: Any) -> Item:
        if isinstance(value, dict):
            path = value.get("path") or name
            value = value.get("bytes")
            if not isinstance(path, str):
                return Item(_unreadable(name, "its path is no text"), name)
            name = path
        if not isinstance(value, bytes):
            return Item(_unreadable(name, value or "the value is null"), name)
        return Item(value if len(value) <= self._limit else _too_large(name, self._limit), name)

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

    def _values(self, group: _Group) -> Iterator[Any]:
        """The values of a row group, one after the other; in place of one that cannot be read,
        why.
        """
        from pyarrow import ArrowException, parquet

        if group.bytes > _MAX_GROUP:
            yield from repeat(f"its part of the table has more than {_MAX_GROUP} bytes")
        try:
            with closing(self._open(group.file)) as file:
                opened = parquet.ParquetFile(
                    file, metadata=self._metadata[group.file], buffer_size=1 << 20
                )
                # One row at a time: a few bytes of a file can say that every row has the same large
                # value.
                for batch in opened.iter_batches(
                    1, row_groups=[group.number], columns=[self._column]
                ):
                    yield from batch.column(0).to_pylist()
        except (ArrowException, ValueError):  # ValueError: of a text that is no UTF-8
            pass
        except OSError as exc:
            # Arrow reports damaged content as a plain OSError without errno; a failed read has one.
            if type(exc) is not OSError or exc.errno is not None:
                raise
        yield from repeat("its part of the file is damaged")


def require_pyarrow(what: str) -> None:
    """Raise StartupError, which begins with ``what``, if pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise StartupError(f"{what}: pyarrow is not installed; pip install 'ign-service[bulk]'")


def _check_column(where: str, schema: Any, column: str) -> None:
    from pyarrow import types

    if column not in schema.names:
        raise StartupError(
            f"{where}: has no column {column!r}; the columns are {', '.join(schema.names)}"
        )
    kind = schema.field(column).type
    is_struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    held = kind.field("bytes").type if is_struct else kind
    if not (types.is_binary(held) or types.is_large_binary(held)):
        raise StartupError(f"{where}: column {column!r} holds no bytes, but {kind}")


def _visible(rows: Iterable[Row], ends: tuple[str, ...]) -> list[Row]:
    """The files whose names end so, without hidden ones, in order."""
    return sorted(row for row in rows if row[0].lower().endswith(ends) and not _is_hidden(row[0]))


def _is_hidden(name: str) -> bool:
    """Whether a file or one of its folders is hidden; macOS adds such files to every zip
    archive.
    """
    return any(
        part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/")
    )


def _too_large(name: str, limit: int) -> RequestError:
    return TooLarge(f"{name}: more than IGN_MAX_BODY_BYTES={limit} bytes")


def _unreadable(name: str, why: str) -> RequestError:
    return InvalidContent.field(name, f"cannot be read: {why}", code="unreadable")


def _digest(parts: Iterable[tuple[str | int, ...]]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()
