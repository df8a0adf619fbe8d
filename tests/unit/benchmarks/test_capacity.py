import json
from pathlib import Path

import pytest

from benchmarks import capacity
from benchmarks.capacity import Capacity
from benchmarks.harness.common import Json

SERVICE: Json = {
    "machine": {"processor": "A CPU", "cpus_granted": 2, "python": "3.11.7"},
    "single_pictures": [
        {"connections": 1, "requests_per_s": 80.0, "p99_ms": 5.0, "server_core_ms": 2.0},
        {"connections": 8, "requests_per_s": 100.0, "p99_ms": 50.0, "server_core_ms": 1.0},
    ],
    "many_rows": [{"form": "npy", "pictures_per_s": 400.0, "p99_ms": 30.0, "server_core_ms": 0.5}],
}
RUNTIME: Json = {
    "sizes": [
        {"rows": 1, "onnxruntime": {"cpu_ms_per_row": 0.9}},
        {"rows": 64, "onnxruntime": {"cpu_ms_per_row": 0.25}},
    ]
}


@pytest.mark.parametrize(("demand", "pods"), [(1, 2), (70, 2), (100, 2), (141, 3), (700, 10), (701, 11)])
def test_pods_are_enough_also_when_one_is_gone(demand: int, pods: int) -> None:
    assert Capacity(request="x", per_s=100.0, p99_ms=1.0, core_ms=1.0).pods(demand, max_busy=0.7) == pods


def test_the_wanted_p99_decides_which_measurement_counts() -> None:
    assert [found.per_s for found in capacity.capacities(SERVICE, p99_ms=60.0)] == [100.0, 400.0]
    assert [found.per_s for found in capacity.capacities(SERVICE, p99_ms=40.0)] == [80.0, 400.0]
    assert [found.per_s for found in capacity.capacities(SERVICE, p99_ms=10.0)] == [80.0]
    with pytest.raises(ValueError, match="4 ms"):
        capacity.capacities(SERVICE, p99_ms=4.0)


def test_a_further_step_costs_a_row_of_the_largest_batch() -> None:
    single = capacity.capacities(SERVICE, p99_ms=60.0)[0].with_steps(5, capacity.model_core_ms(RUNTIME))
    assert single.core_ms == pytest.approx(2.0)
    assert single.per_s == pytest.approx(50.0)


def test_the_table_has_a_line_for_every_load_and_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "service.json").write_text(json.dumps(SERVICE))
    (tmp_path / "runtime.json").write_text(json.dumps(RUNTIME))
    monkeypatch.setattr("sys.argv", ["capacity", "--results", str(tmp_path), "--images-per-s", "50", "700"])
    assert capacity.main() == 0
    text = capsys.readouterr().out
    assert "| 700 | 1 image: PNG to PNG | 100 | 50 | 10 | 20 | 70% |" in text
    assert len(text.splitlines()) == 2 + 2 + 4  # the machine and an empty line, the head, 2 loads × 2 kinds


@pytest.mark.parametrize("service", [None, {"benchmark": "service"}])
def test_results_that_are_missing_are_an_error(
    service: Json | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if service is not None:
        (tmp_path / "service.json").write_text(json.dumps(service))
        (tmp_path / "runtime.json").write_text(json.dumps(RUNTIME))
    monkeypatch.setattr("sys.argv", ["capacity", "--results", str(tmp_path)])
    assert capacity.main() == 2
    assert capsys.readouterr().err.startswith("error: ")
