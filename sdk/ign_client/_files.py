"""Write files atomically."""

import os
import secrets
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Write a file completely under a temporary name, and rename it; an existing file is replaced.

    A symbolic link stays one: the file that it leads to is written. Devices and pipes are written to, not replaced.

    Raises:
        OSError: the file cannot be written; it names ``path``, and the temporary file is removed.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            _replace(Path(os.path.realpath(path)), data)
    except OSError as exc:
        exc.filename, exc.filename2 = os.fspath(path), None
        raise


def _replace(target: Path, data: bytes) -> None:
    part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
