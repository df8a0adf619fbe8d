"""The images, built once from the unchanged Dockerfile. Without podman all of this is skipped."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.slow.containers.engine import BASE, BUILD_S, Engine

GPU_BYTES = 12 * 10**9  # of disk: NVIDIA's wheels, twice

MAKE_BASE = (
    "mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates trixie -"
)


@pytest.fixture(scope="session")
def engine() -> Engine:
    if shutil.which("podman") is None:
        pytest.skip("no container engine")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = Engine(cache / "ign-service" / "containers")
    found.prepare()
    return found


@pytest.fixture(scope="session")
def base(engine: Engine) -> str:
    """What `FROM` names: pulled by hand into this store, or else made of the same Debian's
    packages.
    """
    if not engine.has(BASE):
        if shutil.which("mmdebstrap") is None:
            pytest.skip("no base image, and no mmdebstrap to make one")
        with subprocess.Popen(MAKE_BASE.split(), stdout=subprocess.PIPE) as made:
            subprocess.run(
                ["podman", "import", "--quiet", "-", BASE],
                stdin=made.stdout,
                env=engine.environment,
                capture_output=True,
                timeout=BUILD_S,
                check=True,
            )
        assert made.returncode == 0
    tried = engine.ends(BASE, "--publish=127.0.0.1::8000", command=["true"])
    if tried.returncode != 0:  # in a sandbox that has no networks or control groups of its own
        pytest.skip(f"podman is there, but cannot run a container: {tried.stderr.strip()[-300:]}")
    return BASE


@pytest.fixture(scope="session")
def cpu(engine: Engine, base: str) -> str:
    return engine.build(
        "docker.io/library/ign-service:cpu", "--target=cpu", "--build-arg=REVISION=abc123"
    )


@pytest.fixture(scope="session")
def gpu(engine: Engine, base: str) -> str:
    """Built without `--target`."""
    tag = "docker.io/library/ign-service:gpu"
    if not engine.has(tag) and shutil.disk_usage(engine.store).free < GPU_BYTES:
        pytest.skip(f"the GPU image needs {GPU_BYTES // 10**9} GB of free disk")
    return engine.build(tag)
