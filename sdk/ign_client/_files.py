"""Write files atomically."""

import secrets
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Write a file completely under a temporary name, and rename it; an existing file is replaced.

    Raises:
        OSError: the file cannot be written; the temporary file is removed.
    """
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
