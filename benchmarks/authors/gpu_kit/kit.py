"""Unpack the parts beside this file, then test and measure this service on the GPU of this machine:
`python3 kit.py`.

It needs Python, of the version in the names of the parts, and NVIDIA's driver; neither pip nor a
network. Results go to `results` beside it. The exit status is 0 if all passed. `--help` lists
stages and options.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREE = HERE / "tree"


def main() -> int:
    if not TREE.is_dir():
        try:
            unpack()
        except OSError as exc:
            sys.exit(f"error: {exc}")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if not (TREE / "site" / "nvidia").is_dir():
        libraries = [str(folder) for path in sys.path for folder in Path(path).glob("nvidia/*/lib")]
        environ["LD_LIBRARY_PATH"] = os.pathsep.join(
            filter(None, [*libraries, environ.get("LD_LIBRARY_PATH")])
        )
    command = (
        f"{TREE}/venv/bin/python",
        "-P",
        "-m",
        "benchmarks.authors.gpu_kit.run",
        "--results",
        f"{HERE}/results",
    )
    return subprocess.call([*command, *sys.argv[1:]], env=environ | {"ORT_DISABLE_TELEMETRY": "1"})


def unpack() -> None:
    """Check the parts, and make an environment of what they hold."""
    running = f"-py{sys.version_info[0]}.{sys.version_info[1]}."
    with (
        tempfile.TemporaryDirectory(dir=HERE) as folder,
        tempfile.TemporaryFile(dir=folder) as joined,
    ):
        for line in (HERE / "SHA256SUMS").read_text(encoding="ascii").splitlines():
            digest, name = line.split()
            if running not in name:
                sys.exit(f"error: {name} is for another Python than {running[3:-1]}")
            data = (HERE / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                sys.exit(f"error: {name} is damaged: copy it again")
            joined.write(data)
        joined.seek(0)
        fresh = Path(folder, "tree")
        with tarfile.open(fileobj=joined) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
            archive.extractall(fresh)
        venv.create(fresh / "venv", symlinks=True)
        (packages,) = (fresh / "venv").glob("lib/python*/site-packages")
        (packages / "kit.pth").write_text(
            f"{TREE}/site\n{TREE}/source\n{TREE}/source/sdk\n", encoding="utf-8"
        )
        fresh.rename(TREE)


if __name__ == "__main__":
    sys.exit(main())
