"""The documentation site, as `make site` builds it."""

import subprocess
import sys
from pathlib import Path

from tests.helpers.live import ROOT, environment


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
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out
