from pathlib import Path

import pytest

from benchmarks.harness import common, tables

RESULT = {
    "benchmark": "service",
    "machine": {"processor": "A CPU", "cpus_granted": 2, "python": "3.11.7", "onnxruntime": "1.32.0", "load_1m": 0.04},
    "options": {"quick": False},
    "targets": [
        common.target("share of raw", 0.912345, at_least=0.9),
        common.target("added", 0.31, at_most=0.3, unit="ms"),
        common.target("refused", None, at_most=20, unit="ms"),
    ],
    "many_rows": [{"form": "a|b", "p50_ms": 1234.5, "ok": True}, {"form": "c", "p50_ms": 0.012345, "extra": None}],
    "note": ["not", "a", "table"],
}
RENDERED = """\
A CPU, 2 cores, Python 3.11.7, onnxruntime 1.32.0; load average 0.04.

| target | bound | measured |  |
| --- | --- | --- | --- |
| share of raw | ≥ 0.9 | 0.9123 | met |
| added | ≤ 0.3 ms | 0.31 ms | **missed** |
| refused | ≤ 20 ms | nothing | **missed** |

**many rows**

| form | p50 ms | ok | extra |
| --- | ---: | ---: | --- |
| a\\|b | 1234 | yes |  |
| c | 0.01235 |  |  |

"""


def test_a_result_becomes_tables() -> None:
    assert tables.render(RESULT) == RENDERED


def test_a_quick_run_says_so() -> None:
    assert "quick run" in tables.render(RESULT | {"options": {"quick": True}})


def test_nested_records_have_chosen_columns() -> None:
    sizes = [{"rows": 1, "onnxruntime": {"rows_per_s": 5.0}, "service.runtime": {"rows_per_s": 4.0}, "ratio": 0.8}]
    assert "| 1 | 5 |  |  | 4 | 0.8 |" in tables.render({"benchmark": "runtime", "sizes": sizes})


def test_what_is_no_result_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("list.json", "[]"), ("text.json", "{")):
        (tmp_path / name).write_text(content)
        monkeypatch.setattr("sys.argv", ["tables", str(tmp_path / name)])
        assert tables.main() == 2
    monkeypatch.setattr("sys.argv", ["tables", str(tmp_path / "none.json")])
    assert tables.main() == 2
    assert capsys.readouterr().err.count("error: ") == 3
