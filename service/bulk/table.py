"""Pictures in a column of Parquet files."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from service.bulk.found import Found, digest_of, too_large, unreadable
from service.domain.errors import RequestError, StartupError

_KEPT: Final = 2  # row groups in memory: neighbours in turn are what reading in order asks for


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of one file that lie together: from number ``first`` of the table on."""

    file: str
    number: int
    first: int
    rows: int


class Table:
    """Pictures in a column: their bytes, or a struct with `bytes` and `path` as Hugging Face's data sets have it.

    Args:
        source: for errors.
        files: opened Parquet files, by name.
        column: where the pictures are.
        limit: most bytes of one.

    Raises:
        StartupError: pyarrow is not installed, a file is no Parquet, or has no such column.
    """

    def __init__(self, source: str, files: Mapping[str, BinaryIO], column: str, limit: int) -> None:
        self._opened, self._column, self._limit = files, column, limit
        self._kept: dict[_Group, Any] = {}
        self._lock = threading.Lock()
        try:
            self._open(source)
        except StartupError:
            self.close()
            raise

    def _open(self, source: str) -> None:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise StartupError(f"{source}: pyarrow, which reads Parquet, is not installed") from None
        try:
            self._files: dict[str, Any] = {name: parquet.ParquetFile(file) for name, file in self._opened.items()}
        except (ArrowException, OSError, ValueError) as exc:
            raise StartupError(f"{source}: not Parquet, or damaged") from exc
        for name, file in self._files.items():
            _check_column(f"{source}: {name}", file.schema_arrow, self._column)
        self._groups = self._listed()
        if not len(self):
            raise StartupError(f"{source}: holds no rows")

    def close(self) -> None:
        """Close the files."""
        for file in self._opened.values():
            file.close()

    def _listed(self) -> list[_Group]:
        groups: list[_Group] = []
        first = 0
        for name, file in self._files.items():
            for number in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(number).num_rows
                groups.append(_Group(name, number, first, rows))
                first += rows
        return groups

    def __len__(self) -> int:
        """How many there are."""
        return self._groups[-1].first + self._groups[-1].rows if self._groups else 0

    @property
    def digest(self) -> str:
        """Of names, row groups and their sizes."""
        parts = []
        for group in self._groups:
            size = self._files[group.file].metadata.row_group(group.number).total_byte_size
            parts.append((group.file, group.number, group.rows, size, self._column))
        return digest_of(parts)

    def read(self, start: int, stop: int) -> list[Found]:
        """Pictures by number."""
        found = []
        for group in self._groups:
            low, high = max(start, group.first), min(stop, group.first + group.rows)
            if low < high:
                values = self._values(group).slice(low - group.first, high - low).to_pylist()
                names = (f"{group.file}#{number - self._first_of(group.file)}" for number in range(low, high))
                found += [self._found(name, value) for name, value in zip(names, values, strict=True)]
        return found

    def _first_of(self, file: str) -> int:
        return next(group.first for group in self._groups if group.file == file)

    def _found(self, name: str, value: Any) -> Found:
        if isinstance(value, dict):
            name, value = value.get("path") or name, value.get("bytes")
        return Found(name, self._checked(name, value))

    def _checked(self, name: str, value: bytes | None) -> bytes | RequestError:
        if value is None:
            return unreadable(name, "there is nothing")
        return value if len(value) <= self._limit else too_large(name, self._limit)

    def _values(self, group: _Group) -> Any:
        with self._lock:
            if group not in self._kept:
                while len(self._kept) >= _KEPT:
                    del self._kept[next(iter(self._kept))]
                table = self._files[group.file].read_row_group(group.number, columns=[self._column])
                self._kept[group] = table.column(0)
            return self._kept[group]


def _check_column(where: str, schema: Any, column: str) -> None:
    if column not in schema.names:
        raise StartupError(f"{where}: has no column {column!r}; there is {', '.join(schema.names)}")
    from pyarrow import types

    kind = schema.field(column).type
    if types.is_struct(kind):
        inner = [kind.field(i) for i in range(kind.num_fields)]
        kinds = [field.type for field in inner if field.name == "bytes"]
    else:
        kinds = [kind]
    if not any(types.is_binary(one) or types.is_large_binary(one) for one in kinds):
        raise StartupError(f"{where}: column {column!r} holds no bytes, but {kind}")
