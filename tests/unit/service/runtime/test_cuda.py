import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest

from service.domain.errors import ModelFailure, StartupError
from service.domain.latents import FloatRows
from service.domain.model import DeviceLost, DeviceOutOfMemory, never_continue
from service.runtime import onnx_model
from service.runtime.onnx_model import OnnxModel, bounded_buckets
from service.runtime.runners import PaddedRunner
from service.runtime.session import CudaOptions, CudaUnavailable
from tests.helpers.device_fakes import cuda_on_the_cpu
from tests.helpers.onnx_models import (
    ImageShape,
    every_other_row,
    hungry,
    make_card,
    model_bytes,
    sample_rows,
)

SHAPES: list[ImageShape] = [(1, 8, 8), (3, 8, 8)]
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


# Buckets: the code path of CUDA, in the memory of the CPU


@pytest.fixture
def bucketed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., OnnxModel]:
    """Models that run the code path of CUDA, with sessions and buffers on the CPU."""
    cuda_on_the_cpu(monkeypatch)
    return lambda data, **options: OnnxModel(data, device="cuda", **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_buckets_give_the_rows_of_exact_batches(bucketed: Callable[..., OnnxModel], shape: ImageShape) -> None:
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


def test_reducing_the_batch_gives_up_the_top_bucket(bucketed: Callable[..., OnnxModel]) -> None:
    model = bucketed(model_bytes(make_card(buckets=(1, 4, 8))))
    for left in ((1, 4), (1,), (1,)):
        model.reduce_max_batch()
        assert model.buckets == left
    assert len(model.run(sample_rows(5))) == 5


def test_reducing_the_batch_halves_the_single_bucket(bucketed: Callable[..., OnnxModel]) -> None:
    model = bucketed(model_bytes(), cuda=CudaOptions(deterministic=True), max_batch_rows=40)
    assert model.buckets == (32,)
    model.reduce_max_batch()
    assert model.buckets == (16,)


def test_warm_up_gives_up_buckets_until_nothing_is_left(bucketed: Callable[..., OnnxModel]) -> None:
    model = bucketed(hungry(2**45))
    with pytest.raises(DeviceOutOfMemory):
        model.warm_up()
    assert model.buckets == (1,)


# Rows that stay on the device


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_rows_kept_on_the_device_are_the_same(bucketed: Callable[..., OnnxModel], graphs: bool, rows: int) -> None:
    model = bucketed(model_bytes(make_card(buckets=(1, 4, 8))), cuda=CudaOptions(graphs=graphs))
    model.warm_up()
    device_batch = model.device_batch
    assert device_batch is not None
    x, out = sample_rows(rows), np.empty((rows, 1, 8, 8), np.float32)
    for steps in (0, 1, 2, 5):
        device_batch.upload(x)
        expected = x
        for _ in range(steps):
            device_batch.run_steps()
            expected = model_of_the_cpu().run(expected)
        device_batch.download(out)
        np.testing.assert_array_equal(out, expected)
        model.run(sample_rows(2, seed=9))  # other rows, in between
    model.close()
    with pytest.raises(ModelFailure, match="closed"):
        device_batch.run_steps()


def model_of_the_cpu() -> OnnxModel:
    return OnnxModel(model_bytes(make_card(buckets=(1, 4, 8))), device="cpu")


def test_rows_do_not_stay_on_the_cpu() -> None:
    model = model_of_the_cpu()
    assert model.device_batch is None
    with pytest.raises(ValueError, match="device"):
        model.upload(sample_rows(1))


def test_rows_that_do_not_fit_are_not_uploaded(bucketed: Callable[..., OnnxModel]) -> None:
    model = bucketed(model_bytes(make_card(buckets=(1, 4))))
    others: list[Any] = [sample_rows(2, (3, 8, 8)), sample_rows(0), sample_rows(2).astype(np.float64)]
    for rows in others:
        with pytest.raises(ValueError, match="rows must be"):
            model.upload(rows)
    with pytest.raises(ModelFailure) as caught:
        model.upload(sample_rows(5))
    assert "5 rows, and the largest bucket is 4" in str(caught.value.__cause__)
    with pytest.raises(ModelFailure):
        model.run_steps()  # nothing is loaded


def test_out_of_memory_in_a_step_has_its_own_error_too(bucketed: Callable[..., OnnxModel]) -> None:
    model = bucketed(hungry(2**45))
    model.upload(sample_rows(2))
    with pytest.raises(DeviceOutOfMemory, match="a step does not fit"):
        model.run_steps()


@pytest.mark.parametrize(
    "said",
    [
        "BFCArena::AllocateRawInternal Available memory of 0 is smaller than requested bytes of 97517568",
        "Failed to allocate memory for requested buffer of size 1073741824",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=here",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0",
    ],
)
def test_out_of_memory_is_recognised_by_the_message(
    said: str, bucketed: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {said}")

    model = bucketed(model_bytes())
    monkeypatch.setattr(PaddedRunner, "run_steps", fail)
    with pytest.raises(DeviceOutOfMemory):
        model.run(sample_rows(1))


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=here ; line=131", True),
        ("CUDA error cudaErrorIllegalAddress:an illegal memory access was encountered", True),
        ("the node has no implementation", False),
    ],
)
def test_a_lost_device_is_recognised_by_the_message(
    said: str, lost: bool, bucketed: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : {said}")

    model = bucketed(model_bytes())
    monkeypatch.setattr(PaddedRunner, "run_steps", fail)
    with pytest.raises(DeviceLost if lost else ModelFailure) as caught:
        model.run(sample_rows(1))
    reason = caught.value.reason if isinstance(caught.value, ModelFailure) else str(caught.value)
    assert reason == said.partition(" ; ")[0]
    model.upload(sample_rows(1))
    with pytest.raises(DeviceLost if lost else ModelFailure):
        model.run_steps()


UNCLEAR = "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=here"


@pytest.mark.parametrize(
    ("again", "expected"),
    [
        (UNCLEAR, DeviceLost),  # a row of zeros fails as well, so these rows are not to blame
        ("CUDA failure 700: an illegal memory access was encountered", DeviceLost),
        ("CUDA failure 2: out of memory", ModelFailure),
        ("", ModelFailure),  # a row of zeros runs
    ],
)
def test_after_an_unclear_error_a_row_of_zeros_is_run(
    again: str, expected: type[Exception], bucketed: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[int] = []

    def fail(self: PaddedRunner, rows: FloatRows, out: FloatRows) -> None:
        if rows.any():
            raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : {UNCLEAR}")
        probes.append(len(rows))
        if again:
            raise RuntimeError(again)

    model = bucketed(model_bytes(make_card(buckets=(1, 4, 8))))
    monkeypatch.setattr(PaddedRunner, "__call__", fail)
    with pytest.raises(expected) as caught:
        model.run(sample_rows(8))
    reason = caught.value.reason if isinstance(caught.value, ModelFailure) else str(caught.value)
    assert reason == "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED"  # the first error, not that of the probe
    assert probes == [1]


def test_an_unclear_error_leaves_the_rows_on_the_device(
    bucketed: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bucketed(model_bytes(make_card(buckets=(1, 4))))
    rows = sample_rows(3)
    expected, out = model.run(rows), np.empty_like(rows)
    model.upload(rows)
    model.run_steps()

    def fail(*_: Any) -> None:
        raise RuntimeError(UNCLEAR)

    with monkeypatch.context() as patch:
        patch.setattr(PaddedRunner, "run_steps", fail)
        with pytest.raises(ModelFailure):
            model.run_steps()
    model.download(out)
    np.testing.assert_array_equal(out, expected)


NO_CODE = "CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device"


def test_a_gpu_without_code_in_onnxruntime_is_named(
    bucketed: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.runtime.devices.compute_capability", lambda device_id: (10, 0))
    model = bucketed(model_bytes())
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("GPU 0 has compute capability 10.0, and onnxruntime-gpu")

    def fail(*_: Any) -> None:
        raise RuntimeError(NO_CODE)

    monkeypatch.setattr(PaddedRunner, "run_steps", fail)
    with pytest.raises(DeviceLost, match=r"no kernel image.*; GPU 0 has compute capability 10\.0"):
        model.warm_up()


def test_a_session_with_graphs_is_run_in_one_thread(
    bucketed: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    run_steps = PaddedRunner.run_steps

    def recorded(self: PaddedRunner, keep_going: Callable[[], bool] = never_continue) -> None:
        seen.add(threading.current_thread().name)
        run_steps(self, keep_going)

    monkeypatch.setattr(PaddedRunner, "run_steps", recorded)
    model = bucketed(model_bytes(), cuda=CudaOptions(graphs=True))
    model.warm_up()
    callers = [threading.Thread(target=model.run, args=(sample_rows(2),)) for _ in range(2)]
    for caller in callers:
        caller.start()
        caller.join()
    assert len(seen) == 1
    assert seen.pop().startswith("ign-graphs")
    model.close()


def test_no_thread_is_left_of_a_reduced_or_closed_model(bucketed: Callable[..., OnnxModel]) -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("ign-graphs")} - before

    before: set[threading.Thread] = set()
    before = threads()
    model = bucketed(model_bytes(), cuda=CudaOptions(graphs=True))
    model.warm_up()
    (first,) = threads()
    model.reduce_max_batch()
    first.join(10)
    (second,) = threads()
    model.run(sample_rows(1))
    model.close()
    second.join(10)
    assert not first.is_alive()
    assert not second.is_alive()


def test_with_graphs_too_the_old_session_is_gone_before_the_new_one_starts(
    bucketed: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []

    def start(data: bytes, *_: Any) -> Any:
        assert not [session for session in alive if session() is not None]
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        alive.append(weakref.ref(session))
        return session

    monkeypatch.setattr(onnx_model, "cuda_session", start)
    model = bucketed(model_bytes(make_card(buckets=(1, 2, 4))), cuda=CudaOptions(graphs=True))
    model.warm_up()
    model.reduce_max_batch()
    model.reduce_max_batch()
    assert len(alive) == 3
    model.close()


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


def test_cuda_that_falls_back_silently_is_refused(
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
