import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import common
from benchmarks.harness.processes import ServerFailed


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(0, 1), (0.1, 1), (50, 500), (50.1, 501), (99, 990), (99.9, 999), (99.95, 1000), (100, 1000)],
)
def test_a_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert common.percentile(range(1, 1001), percent) == expected


def test_a_percentile_agrees_with_numpy() -> None:
    values = sorted(np.random.default_rng(0).exponential(size=777).tolist())
    for percent in (1.0, 33.3, 50.0, 99.0, 99.9):
        assert common.percentile(values, percent) == np.percentile(values, percent, method="inverted_cdf")


def test_latencies_are_summed_up_in_milliseconds() -> None:
    found = common.latency([0.004, 0.001, 0.003, 0.002])
    tail = {"p95_ms": 4.0, "p99_ms": 4.0, "p999_ms": 4.0, "max_ms": 4.0}
    assert found == {"count": 4, "mean_ms": 2.5, "p50_ms": 2.0} | tail
    assert common.latency([]) == {"count": 0}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0123456, 0.01235), (1234.6, 1235.0), (0.0, 0.0), (7, 7), ("7.12345", "7.12345"), (None, None), (1e-9, 1e-9)],
)
def test_floats_are_rounded_to_four_digits(value: object, expected: object) -> None:
    assert common.rounded(value) == expected


def test_ways_take_turns() -> None:
    said: list[str] = []

    def way(name: str) -> int:
        said.append(name)
        return len(said)

    found = common.in_turn({name: lambda name=name: way(name) for name in "abc"}, rounds=3)  # type: ignore[misc]
    assert "".join(said) == "abccbaabc"
    assert found == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_what_a_round_has_in_common_cancels_out() -> None:
    slowdown = [1.0, 10.0, 3.0]
    assert common.median_ratio([0.9 * each for each in slowdown], slowdown) == pytest.approx(0.9)


def test_a_slope_is_per_minute() -> None:
    assert common.slope_per_minute([(seconds, 5 + seconds / 30) for seconds in range(100)]) == pytest.approx(2.0)
    assert common.slope_per_minute([(1.0, 5.0)]) == 0.0


def test_memory_that_grows_only_at_first_is_flat() -> None:
    found = common.memory([(float(s), 100.0 + min(s, 30)) for s in range(100)])
    assert found["flat"]
    assert found["first_mib"] == 100.0
    assert found["growth_mib"] == pytest.approx(0.0, abs=1e-9)


def test_memory_that_leaks_is_not_flat() -> None:
    found = common.memory([(float(s), 100.0 + s / 4) for s in range(100)])
    assert not found["flat"]
    assert found["slope_mib_per_minute"] == pytest.approx(15.0)
    assert found["growth_mib"] == pytest.approx(16.5)


def test_a_target_is_met_or_missed() -> None:
    assert common.target("a", 0.9, at_least=0.9)["met"]
    assert not common.target("a", 0.89, at_least=0.9)["met"]
    assert common.target("a", 20, at_most=20)["met"]
    assert not common.target("a", 20.1, at_most=20)["met"]
    assert not common.target("a", None, at_most=20)["met"]
    with pytest.raises(ValueError, match="at_least or at_most"):
        common.target("a", 1.0)
    with pytest.raises(ValueError, match="at_least or at_most"):
        common.target("a", 1.0, at_least=1, at_most=1)


def test_the_machine_is_told_without_names_and_paths() -> None:
    found = common.machine()
    assert found["cpus_granted"] >= 1
    assert found["memory_mib"] > 0
    assert not any("/home" in str(value) or "/work" in str(value) for value in found.values())


def test_a_result_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = common.arguments("Measure nothing.")
    parser.add_argument("--rounds", type=common.positive)
    parser.add_argument("--models")
    file = tmp_path / "new" / "nothing.json"
    options = parser.parse_args(["--quick", "--models", "somewhere", "--results", str(file)])
    options = common.apply_defaults(options, full={"rounds": 5}, quick={"rounds": 1})
    status = common.run_benchmark(lambda asked: common.report("nothing", "none", asked, lines=[1]), options)
    assert status == 0
    found = json.loads(file.read_text())
    assert found == json.loads(capsys.readouterr().out)
    assert found["options"] == {"quick": True, "rounds": 1}  # no paths
    assert found["lines"] == [1]


@pytest.mark.parametrize(("measured", "judge", "status"), [(1.0, True, 0), (2.0, True, 1), (2.0, False, 0)])
def test_a_missed_target_fails_where_it_is_judged(measured: float, judge: bool, status: int) -> None:
    options = common.apply_defaults(common.arguments("Measure nothing.").parse_args([]), full={}, quick={})
    result = {"targets": [common.target("least", measured, at_most=1.0)]}
    assert common.run_benchmark(lambda _: result, options, judge=judge) == status


def test_what_cannot_be_measured_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(options: argparse.Namespace) -> common.Json:
        raise ServerFailed("it did not start")

    options = common.apply_defaults(common.arguments("Measure nothing.").parse_args([]), full={}, quick={})
    assert common.run_benchmark(fail, options) == 2
    assert capsys.readouterr().err == "error: it did not start\n"
