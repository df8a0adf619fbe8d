"""Numbered images of a source, with an error in place of each image that cannot be read."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from service.domain.errors import InvalidContent, RequestError, TooLarge

_CHUNK: Final = 1 << 16  # bytes


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One image of a source: its name there, and its encoded bytes or the error that prevents reading them."""

    name: str
    content: bytes | RequestError


class Source(Protocol):
    """Images in a fixed order. Thread-safe."""

    @property
    def digest(self) -> str:
        """SHA-256 that changes when images are added, removed, renamed or resized."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, start: int, stop: int) -> list[SourceItem]:
        """Images ``start`` … ``stop − 1``.

        Raises:
            OSError: the whole source cannot be read, for example because the network is down.
        """
        ...

    def close(self) -> None:
        """Close all open files."""
        ...


class Reader(Protocol):
    """A binary file that can be read in part."""

    def read(self, size: int, /) -> bytes:
        """Read at most ``size`` bytes."""
        ...


def read_at_most(file: Reader, name: str, limit: int) -> bytes | RequestError:
    """The content of a file, or an error if it is longer than ``limit`` bytes."""
    content = file.read(_CHUNK)
    if len(content) == _CHUNK:  # `read` allocates its full size: 30 µs for the 32 MiB of the usual limit
        content += file.read(max(0, limit + 1 - _CHUNK))
    return content if len(content) <= limit else too_large(name, limit)


def too_large(name: str, limit: int) -> RequestError:
    """The error for an image of more than ``limit`` bytes."""
    return TooLarge(f"{name}: more than IGN_MAX_BODY_BYTES={limit} bytes")


def unreadable(name: str, why: str) -> RequestError:
    """The error for an image whose bytes cannot be read."""
    return InvalidContent.field(name, f"cannot be read: {why}", code="unreadable")


def digest_of(parts: Sequence[tuple[str | int, ...]]) -> str:
    """SHA-256 in hexadecimal of tuples that identify the images of a source."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()
