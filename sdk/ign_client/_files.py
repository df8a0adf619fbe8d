"""Files appear whole or not at all."""

import secrets
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Put a file in its place in one step, over one that may be there.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
