"""Statistics and targets."""

import itertools

import pytest

from benchmarks.harness import common


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


@pytest.mark.parametrize(
    ("measured", "bound", "is_met"),
    [
        (0.9, {"at_least": 0.9}, True),
        (0.89, {"at_least": 0.9}, False),
        (20.1, {"at_most": 20}, False),
        (None, {"at_most": 20}, False),
    ],
)
def test_a_target_is_met_or_missed(
    measured: float | None, bound: dict[str, float], is_met: bool
) -> None:
    line = common.target("a", measured, unit="s", **bound)
    assert (line["met"], line["bound"]) == (is_met, *bound.values())
