"""Pictures in a column of Parquet files."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from service.bulk.files import Files
from service.bulk.source import Found, digest_of, too_large, unreadable
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
        files: where the Parquet files are; none is kept open, since there may be more than a process may open.
        names: which those are.
        column: where the pictures are.
        limit: most bytes of one.

    Raises:
        StartupError: pyarrow is not installed, a file cannot be read, is no Parquet, or has no such column.
    """

    def __init__(self, source: str, files: Files, names: Sequence[str], column: str, limit: int) -> None:
        self._files, self._column, self._limit = files, column, limit
        self._kept: dict[_Group, Any] = {}
        self._lock = threading.Lock()
        if find_spec("pyarrow") is None:
            raise StartupError(f"{source}: pyarrow, which reads Parquet, is not installed")
        self._metadata = {name: self._opened(f"{source}: {name}", name) for name in names}
        self._groups = self._listed()
        if not len(self):
            raise StartupError(f"{source}: holds no rows")

    def _opened(self, where: str, name: str) -> Any:
        from pyarrow import ArrowException, parquet

        try:
            with self._files.open(name) as file:
                found = parquet.ParquetFile(file)
                _check_column(where, found.schema_arrow, self._column)
                return found.metadata
        except (ArrowException, OSError) as exc:
            raise StartupError(f"{where}: not Parquet, damaged, or not to be read: {exc}") from exc

    def close(self) -> None:
        """Nothing is open."""

    def _listed(self) -> list[_Group]:
        groups: list[_Group] = []
        first = 0
        for name, metadata in self._metadata.items():
            for number in range(metadata.num_row_groups):
                rows = metadata.row_group(number).num_rows
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
            size = self._metadata[group.file].row_group(group.number).total_byte_size
            parts.append((group.file, group.number, group.rows, size, self._column))
        return digest_of(parts)

    def read(self, start: int, stop: int) -> list[Found]:
        """Pictures by number."""
        found = []
        for group in self._groups:
            low, high = max(start, group.first), min(stop, group.first + group.rows)
            if low < high:
                names = [f"{group.file}#{number - self._first_of(group.file)}" for number in range(low, high)]
                column = self._values(group)
                if column is None:
                    found += [Found(name, unreadable(name, "its part of the file is damaged")) for name in names]
                    continue
                values = column.slice(low - group.first, high - low).to_pylist()
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
                self._kept[group] = self._read(group)
            return self._kept[group]

    def _read(self, group: _Group) -> Any:
        """The column of one row group; None where it is damaged."""
        from pyarrow import ArrowException, parquet

        with self._files.open(group.file) as file:
            try:
                opened = parquet.ParquetFile(file, metadata=self._metadata[group.file])
                return opened.read_row_group(group.number, columns=[self._column]).column(0)
            except ArrowException:
                return None
            except OSError as exc:
                # What Arrow finds wrong with the content is this; where reading fails, there is a number or a kind.
                if type(exc) is OSError and exc.errno is None:
                    return None
                raise


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
