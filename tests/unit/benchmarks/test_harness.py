"""Statistics and targets."""

import itertools

import numpy as np
import pytest

from benchmarks.harness import common


def test_percentiles_are_nearest_ranks_and_figures_have_four_digits() -> None:
    values = sorted(np.random.default_rng(0).exponential(size=777).tolist())
    for percent in (0.1, 33.3, 50.0, 99.9, 100.0):
        assert common.percentile(values, percent) == np.percentile(
            values, percent, method="inverted_cdf"
        )
    tail = {"p95_ms": 4.0, "p99_ms": 4.0, "p999_ms": 4.0, "max_ms": 4.0}
    assert (
        common.rounded(common.latency([0.004, 0.001, 0.003, 0.002]))
        == {"count": 4, "mean_ms": 2.5, "p50_ms": 2.0} | tail
    )
    assert common.latency([]) == {"count": 0}
    figures = (0.0123456, 1234.6, 0.0, 7, "7.12345", None, 1e-9)
    assert [common.rounded(value) for value in figures] == [
        0.01235,
        1235.0,
        0.0,
        7,
        "7.12345",
        None,
        1e-9,
    ]


def test_ways_take_turns_and_what_a_round_has_in_common_cancels_out() -> None:
    turns = itertools.count(1)
    ways = dict.fromkeys("abc", lambda: next(turns))
    assert common.in_turn(ways, rounds=3) == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}
    slowdown = [1.0, 10.0, 3.0]
    assert common.median_ratio([0.9 * each for each in slowdown], slowdown) == pytest.approx(0.9)
    assert (
        common.median_of(
            [{"ok": {"p50_ms": each}} for each in (3.0, 1.0)] + [{"ok": {}}], "ok.p50_ms"
        )
        == 1.0
    )


@pytest.mark.parametrize(("leak_per_s", "growth"), [(0.0, 0.0), (0.25, 16.5)])
def test_memory_that_leaks_grows_and_growth_at_first_does_not_count(
    leak_per_s: float, growth: float
) -> None:
    summary = common.memory([(float(s), 100.0 + min(s, 30) + leak_per_s * s) for s in range(100)])
    assert summary["growth_mib"] == pytest.approx(growth, abs=1e-9)
    assert summary["allowed_growth_mib"] == 8.0


def test_a_target_is_met_or_missed() -> None:
    cases = [
        (0.9, {"at_least": 0.9}, True),
        (0.89, {"at_least": 0.9}, False),
        (20.1, {"at_most": 20}, False),
    ]
    for measured, bound, is_met in [*cases, (None, {"at_most": 20}, False)]:
        assert common.target("a", measured, **bound)["met"] is is_met  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at_least or at_most"):
        common.target("a", 1.0)
