"""Where Ray may run: it opens ports on every address, even when told not to."""

import os
import shutil
from importlib.util import find_spec

import pytest


def own_namespace() -> list[str]:
    """What to put before a command, so that its network and processes are its own; skips where that cannot be."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed, so nothing was run on it")
    if shutil.which("unshare") is None or shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("Ray needs a network namespace of its own: root, unshare and ip")
    return ["unshare", "-n", "-p", "-f", "--mount-proc", "bash", "-c", 'ip link set lo up && exec "$@"', "-"]
