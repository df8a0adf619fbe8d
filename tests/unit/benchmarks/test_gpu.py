"""The benchmark of the CUDA path: its logic, with sessions and buffers on the CPU; and what it says without CUDA."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from benchmarks import bench_gpu
from benchmarks.harness.common import settle
from benchmarks.harness.device import Device
from benchmarks.harness.processes import ROOT
from benchmarks.harness.tables import render
from service.runtime import onnx_model
from service.runtime import session as sessions
from service.runtime.runners import PaddedRunner
from service.runtime.session import CudaOptions, CudaUnavailable
from tests.helpers.onnx_models import ImageShape, write_model

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
SMI = """#!/bin/sh
case "$*" in
  *memory.used*) echo "512 MiB" ;;
  *) echo "A Card, 590.1, 81920 MiB, 700.00 W, 1980 MHz" ;;
esac
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[CudaOptions]:
    """What every session was asked for; they are on the CPU."""
    asked: list[CudaOptions] = []

    def start(data: bytes, cuda: CudaOptions, _: Any = None) -> Any:
        asked.append(cuda)
        return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def runner(session: Any, shape: ImageShape, buckets: Sequence[int], _: str, **options: Any) -> PaddedRunner:
        return PaddedRunner(session, shape, buckets, "cpu", **options)

    monkeypatch.setattr(onnx_model, "cuda_session", start)
    monkeypatch.setattr(onnx_model, "PaddedRunner", runner)
    return asked


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program


def quick(*files: Path) -> argparse.Namespace:
    names = ["--quick", "--seconds", "0.002", "--soak-s", "0.05", "--model", *map(str, files)]
    return settle(bench_gpu.parser().parse_args(names), full=bench_gpu.FULL, quick=bench_gpu.QUICK)


def test_everything_is_measured(started: list[CudaOptions], smi: Path, tmp_path: Path) -> None:
    small, large = (
        write_model(tmp_path, name, shape=shape, buckets=(1, 4)) / "model.onnx"
        for name, shape in (("small", (1, 28, 28)), ("large", (3, 64, 64)))
    )
    found = bench_gpu.measure(quick(small, large))
    assert json.loads(json.dumps(found)) == found | {"options": json.loads(json.dumps(found["options"]))}
    assert found["device"]["name"] == "A Card"
    assert [(line["model"], line["rows"]) for line in found["sizes"]] == [
        ("small/1", 1),
        ("small/1", 4),
        ("large/1", 1),
        ("large/1", 4),
    ]
    for line in found["sizes"]:
        assert all(line[f"{way}_rows_per_s"] > 0 for way in bench_gpu.WAYS)
    assert {line["of_tolerance"] < 1 for line in found["parity"]} == {True}
    assert [(line["spread"], line["again"]) for line in found["invariance"]] == [(0.0, 0.0)] * 4
    assert [line["rows"] for line in found["changes"]] == ["1 and 4"] * 2
    assert all(line["graphs_in_turn_over_alone"] > 0 for line in found["changes"])
    assert [line["tried_up_to"] >= 64 for line in found["limits"]] == [True, True]
    assert {line["option"] for line in found["options_not_used"]} == set(bench_gpu.UNUSED)
    assert {"host", "device"} <= set(found["memory"][0])
    assert any(cuda.graphs for cuda in started)
    assert len(found["targets"]) == 7
    assert str(tmp_path) not in json.dumps(found)
    assert render(found).startswith("A Card, 81920 MiB, driver 590.1; ")
    assert render(found).count("| --- |") >= 3


def test_half_precision_is_told_from_the_other(started: list[CudaOptions], smi: Path, tmp_path: Path) -> None:
    file = write_model(tmp_path, "small", buckets=(1, 4)) / "model.onnx"
    half = file.with_name("model.fp16.onnx")
    half.write_bytes(file.read_bytes())
    found = bench_gpu.measure(quick(file, half))
    for part in ("sizes", "limits", "changes", "memory", "options_not_used"):
        assert {line["model"] for line in found[part]} == {"small/1", "small/1 in float16"}
    assert {cuda.half for cuda in started} == {False, True}


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


def test_the_options_that_are_tried_reach_the_provider() -> None:
    with bench_gpu.changed({"prefer_nhwc": "1"}):
        assert sessions.cuda_options(CudaOptions())["prefer_nhwc"] == "1"
    assert "prefer_nhwc" not in sessions.cuda_options(CudaOptions())


def test_an_option_that_is_refused_stops_nothing(
    started: list[CudaOptions], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start = vars(onnx_model)["cuda_session"]

    def refuse(data: bytes, cuda: CudaOptions, profile: Any = None) -> Any:
        if "prefer_nhwc" in sessions.cuda_options(cuda):
            raise CudaUnavailable("CUDA cannot be used: no such layout")
        return start(data, cuda, profile)

    monkeypatch.setattr(onnx_model, "cuda_session", refuse)
    file = write_model(tmp_path, "small", buckets=(1, 4)) / "model.onnx"
    refused, *others = bench_gpu.other_options(file.read_bytes(), False, quick(file))
    assert (refused["option"], refused["gain"]) == ("prefer_nhwc", None)
    assert "no such layout" in refused["refused"]
    assert others
    assert all(line["gain"] > 0 and not line["refused"] for line in others)


def test_a_machine_that_tells_nothing_of_its_device(smi: Path) -> None:
    assert Device().used_mib() == 512.0
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert (Device().about(), Device().used_mib()) == ({}, None)
    smi.unlink()
    assert (Device().about(), Device().used_mib()) == ({}, None)


@pytest.mark.skipif(HAS_CUDA, reason="needs an onnxruntime without CUDA")
def test_without_cuda_it_says_so_in_a_line_and_measures_nothing(tmp_path: Path) -> None:
    results = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.bench_gpu", "--quick", "--results", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "skipped: CUDA cannot be used: this onnxruntime is built without it (extra `gpu` has it)\n"
    assert not results.exists()


def test_a_model_that_is_not_there_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_gpu", "--quick", "--model", "nowhere/model.onnx"])
    assert bench_gpu.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
