"""Images in a column of Parquet files."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from service.bulk.files import SourceFiles
from service.bulk.source import SourceItem, digest_of, too_large, unreadable
from service.domain.errors import RequestError, StartupError

_MAX_CACHED: Final = 2  # row groups kept in memory; two batches in flight may span two neighbouring groups


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group of one file; its first row is row ``first`` of the whole table."""

    file: str
    number: int
    first: int
    rows: int


class Table:
    """A column of encoded images: binary, or a struct with `bytes` and `path` as in Hugging Face data sets.

    Args:
        source: name of the source for error messages.
        files: the files of the source. None stays open, because there may be more than a process may open.
        names: names of the Parquet files among them.
        column: name of the column.
        limit: maximum size of one image in bytes.

    Raises:
        StartupError: pyarrow is not installed, or a file cannot be read, is not Parquet, or lacks the column.
    """

    def __init__(self, source: str, files: SourceFiles, names: Sequence[str], column: str, limit: int) -> None:
        self._files, self._column, self._limit = files, column, limit
        self._cache: dict[_Group, Any] = {}
        self._lock = threading.Lock()
        if find_spec("pyarrow") is None:
            raise StartupError(f"{source}: pyarrow is not installed; pip install 'ign-service[bulk]'")
        self._metadata = {name: self._read_metadata(f"{source}: {name}", name) for name in names}
        self._groups = self._row_groups()
        if not len(self):
            raise StartupError(f"{source}: holds no rows")

    def _read_metadata(self, where: str, name: str) -> Any:
        from pyarrow import ArrowException, parquet

        try:
            with self._files.open(name) as file:
                opened = parquet.ParquetFile(file)
                _check_column(where, opened.schema_arrow, self._column)
                return opened.metadata
        except (ArrowException, OSError) as exc:
            raise StartupError(f"{where}: not Parquet, damaged, or unreadable: {exc}") from exc

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _row_groups(self) -> list[_Group]:
        groups: list[_Group] = []
        first = 0
        for name, metadata in self._metadata.items():
            for number in range(metadata.num_row_groups):
                rows = metadata.row_group(number).num_rows
                groups.append(_Group(name, number, first, rows))
                first += rows
        return groups

    def __len__(self) -> int:
        """Number of images."""
        return self._groups[-1].first + self._groups[-1].rows if self._groups else 0

    @property
    def digest(self) -> str:
        """Digest of names, row groups and their sizes."""
        parts = []
        for group in self._groups:
            size = self._metadata[group.file].row_group(group.number).total_byte_size
            parts.append((group.file, group.number, group.rows, size, self._column))
        return digest_of(parts)

    def read(self, start: int, stop: int) -> list[SourceItem]:
        """Images ``start`` … ``stop − 1``."""
        items: list[SourceItem] = []
        for group in self._groups:
            low, high = max(start, group.first), min(stop, group.first + group.rows)
            if low < high:
                names = [f"{group.file}#{number - self._first_of(group.file)}" for number in range(low, high)]
                column = self._cached_column(group)
                if column is None:
                    items += [SourceItem(name, unreadable(name, "its part of the file is damaged")) for name in names]
                    continue
                values = column.slice(low - group.first, high - low).to_pylist()
                items += [self._item(name, value) for name, value in zip(names, values, strict=True)]
        return items

    def _first_of(self, file: str) -> int:
        return next(group.first for group in self._groups if group.file == file)

    def _item(self, name: str, value: Any) -> SourceItem:
        if isinstance(value, dict):
            name, value = value.get("path") or name, value.get("bytes")
        return SourceItem(name, self._content(name, value))

    def _content(self, name: str, value: bytes | None) -> bytes | RequestError:
        if value is None:
            return unreadable(name, "the value is null")
        return value if len(value) <= self._limit else too_large(name, self._limit)

    def _cached_column(self, group: _Group) -> Any:
        with self._lock:
            if group not in self._cache:
                while len(self._cache) >= _MAX_CACHED:
                    del self._cache[next(iter(self._cache))]
                self._cache[group] = self._read_column(group)
            return self._cache[group]

    def _read_column(self, group: _Group) -> Any:
        """The column of one row group; None if it is damaged."""
        from pyarrow import ArrowException, parquet

        with self._files.open(group.file) as file:
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
    if column not in schema.names:
        raise StartupError(f"{where}: has no column {column!r}; the columns are {', '.join(schema.names)}")
    from pyarrow import types

    kind = schema.field(column).type
    if types.is_struct(kind):
        inner = [kind.field(i) for i in range(kind.num_fields)]
        candidates = [field.type for field in inner if field.name == "bytes"]
    else:
        candidates = [kind]
    if not any(types.is_binary(one) or types.is_large_binary(one) for one in candidates):
        raise StartupError(f"{where}: column {column!r} holds no bytes, but {kind}")
