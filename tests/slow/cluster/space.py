"""Where Ray may run: it opens ports on every address, even when told not to."""

import os
import shutil
from importlib.util import find_spec
from typing import Final

import pytest

from tests.helpers.live import run

# What Ray leaves behind goes, too: the next one would look for the cluster of which it reads there,
# for minutes. Its workers would have a niceness of 15, and starve beside other tests.
_WITHIN: Final = """
ip link set lo up || exit
RAY_TMPDIR=$(mktemp -d /tmp/ray.XXXXXX) || exit
export RAY_TMPDIR RAY_worker_niceness=0
"$@"
status=$?
rm -rf "$RAY_TMPDIR"
exit $status
"""


def own_namespace() -> list[str]:
    """What to put before a command, so that its network and processes are its own; skips where that
    cannot be.
    """
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed, so nothing was run on it")
    if shutil.which("unshare") is None or shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("Ray needs a network namespace of its own: root, unshare and ip")
    apart = ["unshare", "-n", "-p", "-f", "--mount-proc", "--kill-child"]
    if run(*apart, "true").returncode:
        pytest.skip("unshare may not make a network namespace here, which Ray needs")
    return [*apart, "bash", "-c", _WITHIN, "-"]
