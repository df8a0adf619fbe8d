"""What all tests share."""

import contextlib
import os

# Set before NumPy is imported: on a busy machine the threads of OpenBLAS mostly wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_configure() -> None:
    """A machine that is busy, as those of CI are, is no failure of a property test."""
    with contextlib.suppress(ImportError):  # the tests of Ray, and those for a GPU, run where it is not
        from hypothesis import HealthCheck, settings

        settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("here")
