"""Sources: a folder of images, a zip archive, or Parquet files.

An image that cannot be read becomes an error in its place. Errors that affect the whole source are raised.
"""

import zipfile
import zlib
from collections.abc import Sequence
from typing import BinaryIO, Final

from service.bulk.files import SourceFiles, is_hidden
from service.bulk.parquet import Table
from service.bulk.source import Source, SourceItem, digest_of, read_at_most, unreadable
from service.domain.errors import RequestError, StartupError

IMAGES: Final = (".png", ".jpg", ".jpeg", ".webp")
_TABLE: Final = ".parquet"
# zipfile raises these for members that are damaged, encrypted, or compressed with an unknown method.
_DAMAGED: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)


def open_source(source: str, *, column: str, limit: int) -> Source:
    """Open a folder, `.zip` or `.parquet`.

    Args:
        source: local path, or a URL that fsspec supports.
        column: column of a Parquet file that holds the images: binary, or a struct with `bytes`.
        limit: maximum size of one image in bytes; a larger image becomes an error in its place.

    Raises:
        StartupError: the source does not exist, cannot be read, or holds no images.
    """
    files = SourceFiles(source)
    names = list(files.sizes)
    if files.single and names[0].lower().endswith(".zip"):
        return Archive(source, files.open(names[0]), limit)
    images = [name for name in names if name.lower().endswith(IMAGES)]
    if images:
        return Folder(files, images, limit)
    tables = [name for name in names if name.lower().endswith(_TABLE)]
    if tables:
        return Table(source, files, tables, column, limit)
    raise StartupError(f"{source}: holds no {' '.join((*IMAGES, _TABLE))}, and is no .zip")


class Folder:
    """Image files of a folder, or one image file."""

    def __init__(self, files: SourceFiles, names: Sequence[str], limit: int) -> None:
        self._files, self._names, self._limit = files, names, limit

    def __len__(self) -> int:
        """Number of images."""
        return len(self._names)

    @property
    def digest(self) -> str:
        """Digest of names and sizes."""
        return digest_of([(name, self._files.sizes[name]) for name in self._names])

    def read(self, start: int, stop: int) -> list[SourceItem]:
        """Images ``start`` … ``stop − 1``."""
        return [SourceItem(name, self._content(name)) for name in self._names[start:stop]]

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _content(self, name: str) -> bytes | RequestError:
        try:
            with self._files.open(name) as file:
                return read_at_most(file, name, self._limit)
        except (FileNotFoundError, PermissionError) as exc:
            return unreadable(name, exc.strerror or "it does not exist")


class Archive:
    """Images of a zip archive.

    Args:
        source: name of the archive for error messages.
        file: the open archive, which this object closes.
        limit: maximum size of one image in bytes.

    Raises:
        StartupError: the file is not a zip archive, or holds no images.
    """

    def __init__(self, source: str, file: BinaryIO, limit: int) -> None:
        try:
            file.read(1)  # zipfile would report a failing read as "not a zip archive"
            self._zip = zipfile.ZipFile(file)
        except OSError as exc:
            file.close()
            raise StartupError(f"{source}: cannot be read: {exc.strerror or exc}") from exc
        except _DAMAGED as exc:
            file.close()
            raise StartupError(f"{source}: not a zip archive, or a damaged one") from exc
        members = [info for info in self._zip.infolist() if info.filename.lower().endswith(IMAGES)]
        self._members = sorted((m for m in members if not is_hidden(m.filename)), key=lambda info: info.filename)
        self._file, self._limit = file, limit
        if not self._members:
            self.close()
            raise StartupError(f"{source}: holds no {' '.join(IMAGES)}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self._members)

    @property
    def digest(self) -> str:
        """Digest of names, sizes and checksums."""
        return digest_of([(info.filename, info.file_size, info.CRC) for info in self._members])

    def read(self, start: int, stop: int) -> list[SourceItem]:
        """Images ``start`` … ``stop − 1``."""
        return [SourceItem(info.filename, self._content(info)) for info in self._members[start:stop]]

    def close(self) -> None:
        """Close the archive."""
        self._zip.close()
        self._file.close()

    def _content(self, info: zipfile.ZipInfo) -> bytes | RequestError:
        try:
            with self._zip.open(info) as file:
                return read_at_most(file, info.filename, self._limit)
        except _DAMAGED:
            return unreadable(info.filename, "this member of the archive is damaged or encrypted")
