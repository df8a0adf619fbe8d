"""Statistics, targets, options, result files, tables and the documents and charts made of them."""

import argparse
import itertools
import re

import numpy as np
import pytest

from benchmarks import capacity
from benchmarks.charts import charts
from benchmarks.harness import common, tables
from benchmarks.harness.common import Json


def test_percentiles_are_nearest_ranks_and_figures_have_four_digits() -> None:
    values = sorted(np.random.default_rng(0).exponential(size=777).tolist())
    for percent in (0.1, 33.3, 50.0, 99.9, 100.0):
        assert common.percentile(values, percent) == np.percentile(
            values, percent, method="inverted_cdf"
        )
    tail = {"p95_ms": 4.0, "p99_ms": 4.0, "p999_ms": 4.0, "max_ms": 4.0}
    assert (
        common.latency([0.004, 0.001, 0.003, 0.002])
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


SERVICE: Json = {
    "machine": {"processor": "A CPU", "cpus_granted": 2, "python": "3.11.7"},
    "single_images": [
        {"connections": 1, "requests_per_s": 80.0, "p99_ms": 5.0, "server_core_ms": 2.0},
        {"connections": 8, "requests_per_s": 100.0, "p99_ms": 50.0, "server_core_ms": 1.0},
    ],
    "many_rows": [
        {
            "form": "npy",
            "images_per_s": 400.0,
            "raw_core_ms": 0.25,
            "p99_ms": 30.0,
            "server_core_ms": 0.5,
        }
    ],
}


@pytest.mark.parametrize(
    ("demand", "pods"), [(1, 2), (70, 2), (100, 2), (141, 3), (700, 10), (701, 11)]
)
def test_pods_are_enough_also_when_one_is_gone(demand: int, pods: int) -> None:
    assert (
        capacity.Capacity(request="x", per_s=100.0, p99_ms=1.0, core_ms=1.0).pods(
            demand, max_busy=0.7
        )
        == pods
    )


def test_the_wanted_p99_and_the_steps_decide_what_a_pod_does() -> None:
    rates = {
        p99: [each.per_s for each in capacity.capacities(SERVICE, p99)]
        for p99 in (60.0, 40.0, 10.0)
    }
    assert rates == {60.0: [100.0, 400.0], 40.0: [80.0, 400.0], 10.0: [80.0]}
    with pytest.raises(ValueError, match="4 ms"):
        capacity.capacities(SERVICE, p99_ms=4.0)
    single = capacity.capacities(SERVICE, p99_ms=60.0)[0].with_steps(5, 0.25)
    assert single.core_ms == pytest.approx(2.0)
    assert single.per_s == pytest.approx(50.0)


def test_every_marked_table_exists_and_can_be_made() -> None:
    options = argparse.Namespace(
        results=tables.RESULTS, images_per_s=[1], p99_ms=200.0, steps=2, max_busy=0.7
    )
    assert all(make(tables.RESULTS, options) for make in capacity.TABLES.values())
    capacity.filled(capacity.DOCUMENT.read_text(encoding="utf-8"), options)


def texts(svg: bytes) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode())


def test_the_stored_charts_are_those_of_the_stored_results() -> None:
    stale = [
        file.name
        for file, content in charts().items()
        if texts(file.read_bytes()) != texts(content)
    ]
    assert not stale, "run `python -m benchmarks.charts`"
