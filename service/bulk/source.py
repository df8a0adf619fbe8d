"""What a source gives: pictures by number, and errors in the places of those that cannot be read."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.domain.errors import InvalidContent, RequestError, TooLarge


@dataclass(frozen=True, slots=True)
class Found:
    """One picture as it lies in its source: its name there, and its bytes, or why they are not to be had."""

    name: str
    content: bytes | RequestError


class Source(Protocol):
    """Many pictures, in an order that stays. Read from several threads."""

    @property
    def digest(self) -> str:
        """Changes when pictures come, go, or change their size."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def read(self, start: int, stop: int) -> list[Found]:
        """Pictures ``start`` … ``stop − 1``.

        Raises:
            OSError: reading fails altogether.
        """
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class Readable(Protocol):
    """What can be read up to a number of bytes."""

    def read(self, size: int, /) -> bytes:
        """So many, or what is left."""
        ...


def bounded(file: Readable, name: str, limit: int) -> bytes | RequestError:
    """All of a file, or that it is longer than ``limit`` bytes."""
    content = file.read(limit + 1)
    return content if len(content) <= limit else too_large(name, limit)


def too_large(name: str, limit: int) -> RequestError:
    """A picture of more than ``limit`` bytes."""
    return TooLarge(f"{name}: more than IGN_MAX_BODY_BYTES={limit} bytes")


def unreadable(name: str, why: str) -> RequestError:
    """A picture whose bytes are not to be had."""
    return InvalidContent.field(name, f"cannot be read: {why}", code="unreadable")


def digest_of(parts: Sequence[tuple[str | int, ...]]) -> str:
    """SHA-256, in hexadecimal, of what identifies the pictures of a source."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()
