"""The files of a release, made once for all tests of a worker."""

from pathlib import Path

import pytest

from tests.docs.test_docs import PROGRAMS
from tests.structure.test_packaging import make, stubs

REPOSITORY = "https://example.org/ign"


def make_release(folder: Path, **variables: str) -> Path:
    """The folder that `make release` fills, with this environment's programs."""
    stubs(folder, "python", "cyclonedx-py", script=f'exec {PROGRAMS}/${{0##*/}} "$@"')
    done = make(
        folder, "release", f"DIST={folder / 'dist'}", f"REPOSITORY={REPOSITORY}", **variables
    )
    if "no git repository" in done.stderr or "npm gets no packages" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "dist"


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_release(tmp_path_factory.mktemp("release"))
