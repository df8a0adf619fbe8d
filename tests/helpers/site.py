"""The documentation site, as `make site` builds it."""

import sys
from pathlib import Path

from tests.helpers.live import run


def build_site(out: Path) -> Path:
    """Build the site in a folder; a warning of mkdocs fails."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(out),
    ]
    done = run(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    return out
