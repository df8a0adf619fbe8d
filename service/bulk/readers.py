"""Pictures by number: of a folder, a zip archive, or a Parquet table.

A picture that cannot be read is an error in its place; what would happen to all of them is raised.
"""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from service.bulk.files import Files, Local, is_hidden
from service.bulk.parquet import Table
from service.bulk.remote import Remote
from service.bulk.source import Found, Source, bounded, digest_of, unreadable
from service.domain.errors import RequestError, StartupError

PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp")
_TABLE: Final = ".parquet"
# What zipfile raises on members that are damaged, encrypted, or packed as it cannot unpack.
_DAMAGED: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)


def open_source(source: str, *, column: str, limit: int) -> Source:
    """The pictures of a folder, `.zip` or `.parquet`, by path or URL.

    Args:
        source: path or URL.
        column: of the table, where the pictures are: binary, or a struct with `bytes`.
        limit: most bytes of one picture; a larger one is an error in its place.

    Raises:
        StartupError: there is nothing, or nothing that can be read.
    """
    files = files_of(source)
    names = list(files.sizes)
    if files.single and names[0].lower().endswith(".zip"):
        return Archive(source, files.open(names[0]), limit)
    pictures = [name for name in names if name.lower().endswith(PICTURES)]
    if pictures:
        return Folder(files, pictures, limit)
    tables = [name for name in names if name.lower().endswith(_TABLE)]
    if tables:
        return Table(source, files, tables, column, limit)
    raise StartupError(f"{source}: holds no {' '.join((*PICTURES, _TABLE))}, and is no .zip")


def files_of(source: str) -> Files:
    """The files behind a path or URL.

    Raises:
        StartupError: there are none.
    """
    return Remote(source) if "://" in source else Local(Path(source))


class Folder:
    """Pictures that are files."""

    def __init__(self, files: Files, names: Sequence[str], limit: int) -> None:
        self._files, self._names, self._limit = files, names, limit

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)

    @property
    def digest(self) -> str:
        """Of names and sizes."""
        return digest_of([(name, self._files.sizes[name]) for name in self._names])

    def read(self, start: int, stop: int) -> list[Found]:
        """Pictures by number."""
        return [Found(name, self._content(name)) for name in self._names[start:stop]]

    def close(self) -> None:
        """Nothing is open."""

    def _content(self, name: str) -> bytes | RequestError:
        try:
            with self._files.open(name) as file:
                return bounded(file, name, self._limit)
        except (FileNotFoundError, PermissionError) as exc:
            return unreadable(name, exc.strerror or "it is not there")


class Archive:
    """Pictures in a zip.

    Raises:
        StartupError: it is none, or holds no pictures.
    """

    def __init__(self, source: str, file: BinaryIO, limit: int) -> None:
        try:
            file.read(1)  # where this fails, zipfile would say that it is no archive
            self._zip = zipfile.ZipFile(file)
        except OSError as exc:
            file.close()
            raise StartupError(f"{source}: cannot be read: {exc.strerror or exc}") from exc
        except _DAMAGED as exc:
            file.close()
            raise StartupError(f"{source}: not a zip archive, or a damaged one") from exc
        members = [info for info in self._zip.infolist() if info.filename.lower().endswith(PICTURES)]
        self._members = sorted((m for m in members if not is_hidden(m.filename)), key=lambda info: info.filename)
        self._file, self._limit = file, limit
        if not self._members:
            self.close()
            raise StartupError(f"{source}: holds no {' '.join(PICTURES)}")

    def __len__(self) -> int:
        """How many there are."""
        return len(self._members)

    @property
    def digest(self) -> str:
        """Of names, sizes and checksums."""
        return digest_of([(info.filename, info.file_size, info.CRC) for info in self._members])

    def read(self, start: int, stop: int) -> list[Found]:
        """Pictures by number."""
        return [Found(info.filename, self._content(info)) for info in self._members[start:stop]]

    def close(self) -> None:
        """Close the archive."""
        self._zip.close()
        self._file.close()

    def _content(self, info: zipfile.ZipInfo) -> bytes | RequestError:
        try:
            with self._zip.open(info) as file:
                return bounded(file, info.filename, self._limit)
        except _DAMAGED:
            return unreadable(info.filename, "its archive is damaged or encrypted there")
