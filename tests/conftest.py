"""Which tests run by default, and how many examples a property test takes."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# pytest explains a failed assertion of a helper only if it rewrites the module.
pytest.register_assert_rewrite("tests.contract.harness", "tests.slow.browser.visit")

# Set before NumPy is imported: on a busy machine the threads of OpenBLAS mostly wait for one
# another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # the environments of Ray and of a machine with a GPU do without
    pass
else:
    # A busy machine makes examples slow; that is no failure. `--hypothesis-profile=ci` chooses the
    # thorough profile.
    shared: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("fast", max_examples=25, **shared)
    settings.register_profile("ci", max_examples=100, **shared)
    settings.load_profile("ci" if os.environ.get("CI") else "fast")

# The workers of pytest-xdist share the CPUs. torch reads this when it is imported, which is later.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Importing torch and collecting thousands of tests makes objects that stay: collections look at
# none of them.
gc.disable()

SLOW_FOLDER = Path(__file__).parent / "slow"
LONGEST = {"test_smoke", "test_bulk", "test_release", "test_site", "test_docs", "test_process"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker more than there are CPUs, of which a container may have fewer than its host: tests
    also wait. Slow ones wait half of their time, mostly for other processes.
    """
    from service.environment import available_cpus

    return available_cpus() + 1 + takes_slow(config)


def takes_slow(config: pytest.Config) -> bool:
    return bool(config.getoption("slow") or config.getoption("markexpr"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import what is slow where nothing of it will run: it needs large packages."""
    return True if collection_path == SLOW_FOLDER and not takes_slow(config) else None


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark everything below tests/slow as slow."""
    if SLOW_FOLDER in item.path.parents:
        item.add_marker("slow")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out of what `-k` has chosen; `--slow` or `-m` keeps them.

    The last files come first: what takes longest is at their end, in tests/unit, and at the end of
    a run no worker should wait for another one. Of slow tests, a few files take longest.
    """
    items.sort(key=lambda item: item.path, reverse=True)
    if takes_slow(config):
        items.sort(key=lambda item: item.path.stem not in LONGEST)
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _no_slow_callback() -> Iterator[None]:
    """No test makes the event loop of a service wait."""
    yield
    watchdog = sys.modules.get("tests.helpers.watchdog")
    if watchdog and watchdog.slow:
        reported = "; ".join(watchdog.slow)
        watchdog.slow.clear()
        pytest.fail(f"slow callbacks of the service: {reported}")
