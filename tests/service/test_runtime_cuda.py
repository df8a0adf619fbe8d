import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest

from service import runtime
from service.domain.errors import ModelFailure, StartupError
from service.domain.tasks import DeviceOutOfMemory
from service.runtime import BucketRunner, CudaUnavailable, OnnxModel, bounded_buckets, cuda_options
from tests.service.onnx_models import (
    Shape,
    every_other_row,
    hungry,
    make_card,
    model_bytes,
    reference,
    sample_rows,
)

SHAPES: list[Shape] = [(1, 8, 8), (3, 8, 8)]
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


# Buckets: the code path of CUDA, in the memory of the CPU


@pytest.fixture
def bucketed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., OnnxModel]:
    """Models that believe in CUDA, with sessions and buffers on the CPU."""

    def start(data: bytes, **_: Any) -> Any:
        return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def runner(session: Any, shape: Shape, buckets: Sequence[int], device: str) -> BucketRunner:
        assert device == "cuda"
        return BucketRunner(session, shape, buckets, "cpu")

    monkeypatch.setattr(runtime, "_cuda_session", start)
    monkeypatch.setattr(runtime, "BucketRunner", runner)
    return lambda data, **options: OnnxModel(data, device="cuda", **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_buckets_give_the_rows_of_exact_batches(bucketed: Callable[..., OnnxModel], shape: Shape) -> None:
    data = model_bytes(make_card(shape=shape, buckets=(2, 4, 8)))
    padded, exact = bucketed(data), OnnxModel(data, device="cpu")
    padded.warm_up()
    for n in (1, 2, 3, 4, 7, 8, 9, 21, 3):
        rows = sample_rows(n, shape, seed=n)
        np.testing.assert_array_equal(padded.run(rows), exact.run(rows), strict=True)
        np.testing.assert_array_equal(padded.run(rows, rows), exact.run(sample_rows(n, shape, seed=n)))


def test_an_answer_in_buckets_is_not_overwritten_by_the_next(bucketed: Callable[..., OnnxModel]) -> None:
    model = bucketed(model_bytes())
    first = model.run(sample_rows(3))
    kept = first.copy()
    model.run(sample_rows(3, seed=1))
    np.testing.assert_array_equal(first, kept)


def test_a_model_that_loses_rows_fails_in_buckets_too(bucketed: Callable[..., OnnxModel]) -> None:
    with pytest.raises(ModelFailure):
        bucketed(every_other_row()).run(sample_rows(2))


def test_shedding_gives_up_the_top_bucket(bucketed: Callable[..., OnnxModel]) -> None:
    model = bucketed(model_bytes(make_card(buckets=(1, 4, 8))))
    for left in ((1, 4), (1,), (1,)):
        model.shed()
        assert model.buckets == left
    assert len(model.run(sample_rows(5))) == 5


def test_shedding_halves_the_single_bucket(bucketed: Callable[..., OnnxModel]) -> None:
    model = bucketed(model_bytes(), deterministic=True, max_batch_rows=40)
    assert model.buckets == (32,)
    model.shed()
    assert model.buckets == (16,)


def test_warm_up_gives_up_buckets_until_nothing_is_left(bucketed: Callable[..., OnnxModel]) -> None:
    model = bucketed(hungry(2**45))
    with pytest.raises(DeviceOutOfMemory):
        model.warm_up()
    assert model.buckets == (1,)


@pytest.mark.parametrize(
    ("limit", "single", "buckets"),
    [
        (64, False, (4, 8, 32)),
        (31, False, (4, 8)),
        (32, True, (32,)),
        (8, True, (8,)),
        (3, False, (3,)),
        (3, True, (3,)),
    ],
)
def test_buckets_are_bounded(limit: int, single: bool, buckets: tuple[int, ...]) -> None:
    assert bounded_buckets((4, 8, 32), limit, single=single) == buckets


# Devices


def test_deterministic_cuda_does_not_search() -> None:
    search = "cudnn_conv_algo_search"
    assert cuda_options(deterministic=True)[search] == "HEURISTIC"
    assert cuda_options(deterministic=False)[search] == "EXHAUSTIVE"
    assert all(cuda_options(deterministic=flag)["use_tf32"] == "0" for flag in (True, False))


@pytest.mark.skipif(HAS_CUDA, reason="needs an onnxruntime without CUDA")
def test_cuda_that_is_not_there_is_refused_and_auto_says_why() -> None:
    with pytest.raises(CudaUnavailable, match="built without it"):
        OnnxModel(model_bytes(), device="cuda")
    model = OnnxModel(model_bytes(), device="auto")
    assert (model.device, model.buckets) == ("cpu", None)
    assert model.fallback_reason is not None
    assert "built without it" in model.fallback_reason


@pytest.mark.skipif(HAS_CUDA, reason="needs an onnxruntime without CUDA")
def test_cuda_that_does_not_load_is_refused_and_auto_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is missing: the provider is listed, but its session comes up on the CPU or not at all."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        model = OnnxModel(model_bytes(), device="auto")
    assert model.device == "cpu"
    assert model.fallback_reason is not None
    assert model.fallback_reason.startswith("CUDA cannot be used: ")
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(CudaUnavailable):
        OnnxModel(model_bytes(), device="cuda")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_file_of_a_later_onnx_is_not_cudas_fault(
    device: Literal["auto", "cuda"], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    original = onnxruntime.InferenceSession

    def start(data: bytes, *_: Any, **options: Any) -> Any:
        started.append(options["providers"])
        return original(data, providers=["CPUExecutionProvider"])

    model = onnx.load_from_string(model_bytes())
    model.opset_import[0].version = 999
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    with pytest.raises(StartupError, match=r"^needs ONNX opset 999, and onnxruntime") as caught:
        OnnxModel(model.SerializeToString(), device=device)
    assert not isinstance(caught.value, CudaUnavailable)
    assert len(started) == 1  # another session would say the same


def test_cuda_that_falls_back_in_silence_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    start = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: sys.stdout.write("Failed to load libcudart"))
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda data, *_, **__: start(data, providers=["CPUExecutionProvider"])
    )
    with pytest.raises(CudaUnavailable, match="its provider did not load"):
        OnnxModel(model_bytes(), device="cuda")
    assert "Failed to load libcudart" in caplog.text
    assert capsys.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="needs CUDA")
@pytest.mark.parametrize("deterministic", [False, True])
def test_cuda_gives_the_cpus_rows(deterministic: bool) -> None:
    data = model_bytes(make_card(buckets=(1, 4, 8)))
    model = OnnxModel(data, device="cuda", deterministic=deterministic)
    assert model.provider == "CUDAExecutionProvider"
    model.warm_up()
    for n in (1, 3, 8, 11):
        rows = sample_rows(n)
        np.testing.assert_allclose(model.run(rows), reference(rows), atol=1e-5)
