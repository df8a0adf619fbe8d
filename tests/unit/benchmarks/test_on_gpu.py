"""Tests and benchmark of the CUDA path in one go: what is kept, and what the exit status says. No GPU is wanted."""

import sys
from pathlib import Path

import onnxruntime
import pytest

from benchmarks import on_gpu

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def test_it_takes_less_than_ten_minutes() -> None:
    assert sum(on_gpu.LIMITS.values()) < 600


@pytest.mark.skipif(HAS_CUDA, reason="needs an onnxruntime without CUDA")
def test_without_a_gpu_nothing_is_measured_and_all_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "gpu.json").write_text("{}")  # of an earlier time
    monkeypatch.setattr(sys, "argv", ["on_gpu", "--out", str(out), "--benchmark=--quick"])
    assert on_gpu.main() == 1
    tests, benchmark, tables, nothing = capsys.readouterr().out.splitlines()
    assert tests.startswith("tests: 0, ")
    assert "skipped" in tests
    assert benchmark.startswith("benchmark: 0, ")
    assert "skipped: CUDA cannot be used" in benchmark
    assert tables.startswith("tables: 2, ")
    assert nothing == "nothing was measured"
    assert sorted(path.name for path in out.iterdir()) == ["benchmark.txt", "tables.txt", "tests.txt"]
    assert "no GPU: CUDA cannot be used" in (out / "tests.txt").read_text()


def test_what_takes_too_long_is_ended_and_what_it_said_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(on_gpu.LIMITS, "tests", 2.0)
    code = "import threading; print('began'); threading.Event().wait()"
    assert not on_gpu.run("tests", [sys.executable, "-c", code], tmp_path / "said.txt")
    assert "tests: out of time" in capsys.readouterr().out
    assert (tmp_path / "said.txt").read_text().startswith("began")


def test_a_folder_that_cannot_be_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["on_gpu", "--out", str(tmp_path / "file" / "out")])
    assert on_gpu.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
