"""Atomic file writes, and a lock on a folder."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from model_export.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; it replaces ``path`` when the block succeeds and is
    deleted otherwise.

    A symbolic link stays one: the file that it leads to is replaced. Devices and pipes are written
    to, not replaced. An OSError names a file.
    """
    target = Path(os.path.realpath(path))
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                # The data must be on disk before the rename, or a power failure could leave an
                # empty file.
                os.fsync(file.fileno())
            # mkstemp creates the file readable by its owner only.
            os.chmod(name, 0o644)
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as exc:
        exc.filename = exc.filename or os.fspath(path)  # of a full disk there is none
        raise


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a whole file, as `atomic_write` does."""
    with atomic_write(path) as file:
        file.write(content)


@contextmanager
def file_lock(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder. The operating system releases it when the process ends
    for any reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise UserError(f"another process trains in {folder}") from exc
    try:
        yield
    finally:
        os.close(descriptor)
