"""The GPU benchmark where there is no GPU: targets, `nvidia-smi`, time limits and exit status."""

import sys
from pathlib import Path

import onnxruntime
import pytest

from benchmarks import bench_gpu, on_gpu
from benchmarks.harness.device import Device

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 512 MiB\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program


def test_the_card_that_is_told_of_is_the_visible_one(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi.write_text('#!/bin/sh\nfor last; do :; done\necho "${last#--id=} MiB"\n')
    for visible, asked in (("", 0), ("3", 3), ("2,1", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert Device().used_mib() == asked


def test_a_target_is_about_the_worst() -> None:
    sizes = [
        {"model": model, "rows": rows, "run_over_raw": over, "of_limit": over, "graph_gain": gain}
        for model, rows, over, gain in (
            ("a/1", 1, 0.1, 2.0),
            ("a/1", 64, 0.95, 0.2),
            ("b/1", 1, 0.1, 1.5),
            ("b/1", 8, 0.8, 1.0),
        )
    ]
    parity = [{"of_tolerance": 0.1}, {"of_tolerance": 1.5}]
    changes = [{"graphs_in_turn_over_alone": 1.0}, {"graphs_in_turn_over_alone": 1.3}]
    found = bench_gpu.targets(parity, [{"spread": 0.0}, {"spread": 1e-6}], sizes, changes, [{"growth_mib": 1.0}])
    assert [line["measured"] for line in found] == [1.5, 1e-6, 0.8, 0.8, 1.5, 1.3, 1.0]
    assert [line["met"] for line in found] == [False, False, False, False, True, False, True]


def test_a_machine_that_tells_nothing_of_its_device(smi: Path) -> None:
    assert Device().used_mib() == 512.0
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert (Device().about(), Device().used_mib()) == ({}, None)
    smi.unlink()
    assert (Device().about(), Device().used_mib()) == ({}, None)


@pytest.mark.slow
@pytest.mark.skipif(HAS_CUDA, reason="needs an onnxruntime without CUDA")
def test_without_a_gpu_every_part_runs_and_the_status_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gpu.json").write_text("{}")  # of an earlier run
    monkeypatch.setattr(sys, "argv", ["on_gpu", "--out", str(tmp_path), "--benchmark=--quick"])
    assert on_gpu.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines[:3]] == ["tests: 0", "benchmark: 0", "tables: 2"]
    assert "skipped: CUDA" in lines[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmark.txt", "tables.txt", "tests.txt"]


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_stopped_and_its_output_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(on_gpu.LIMITS, "tests", 2.0)
    code = "import threading; print('began'); threading.Event().wait()"
    assert not on_gpu.run("tests", [sys.executable, "-c", code], tmp_path / "log.txt")
    assert (tmp_path / "log.txt").read_text().startswith("began")


def test_a_missing_model_is_an_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_gpu", "--quick", "--model", "nowhere/model.onnx"])
    assert bench_gpu.main() == 2
    assert capsys.readouterr().err.startswith("error: ")
