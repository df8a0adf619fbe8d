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
from service.domain.model import DeviceLost, DeviceOutOfMemory
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
        result, expected = padded.run(rows), exact.run(rows)
        padded.run(rows, rows)
        np.testing.assert_array_equal(rows, expected, strict=True)
        np.testing.assert_array_equal(result, expected, strict=True)  # the second run has not overwritten it


def test_a_model_that_loses_rows_fails_in_buckets_too(bucketed: Callable[..., OnnxModel]) -> None:
    with pytest.raises(ModelFailure):
        bucketed(every_other_row()).run(sample_rows(2))


@pytest.mark.parametrize(
    ("options", "left"),
    [({}, [(1, 4), (1,), (1,)]), ({"cuda": CudaOptions(deterministic=True), "max_batch_rows": 40}, [(4,), (2,), (1,)])],
)
def test_reducing_the_batch_halves_the_single_bucket(
    options: dict[str, Any], left: list[tuple[int, ...]], bucketed: Callable[..., OnnxModel]
) -> None:
    """Of several buckets it gives up the largest."""
    model = bucketed(model_bytes(make_card(buckets=(1, 4, 8))), **options)
    for buckets in left:
        model.reduce_max_batch()
        assert model.buckets == buckets
    assert len(model.run(sample_rows(5))) == 5


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
    ("said", "expected"),
    [
        ("BFCArena::AllocateRawInternal Available memory of 0 is smaller than requested bytes of 9", DeviceOutOfMemory),
        ("Failed to allocate memory for requested buffer of size 1073741824", DeviceOutOfMemory),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=here", DeviceOutOfMemory),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", DeviceOutOfMemory),
        ("CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0", DeviceOutOfMemory),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=here ; line=131", DeviceLost),
        ("CUDA error cudaErrorIllegalAddress:an illegal memory access was encountered", DeviceLost),
        ("the node has no implementation", ModelFailure),
    ],
)
def test_an_error_is_recognised_by_the_message(
    said: str, expected: type[Exception], bucketed: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bucketed(model_bytes())
    monkeypatch.setattr(PaddedRunner, "run_steps", failing(f"[ONNXRuntimeError] : 1 : FAIL : {said}"))
    with pytest.raises(expected) as caught:
        model.run(sample_rows(1))
    assert reason_of(caught.value).endswith(said.partition(" ; ")[0])
    model.upload(sample_rows(1))
    with pytest.raises(expected):
        model.run_steps()


def failing(message: str) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise RuntimeError(message)

    return fail


def reason_of(error: Exception) -> str:
    return error.reason if isinstance(error, ModelFailure) else str(error)


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
    assert (
        reason_of(caught.value) == "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED"
    )  # the first error, not that of the probe
    assert probes == [1]


def test_an_unclear_error_leaves_the_rows_on_the_device(
    bucketed: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bucketed(model_bytes(make_card(buckets=(1, 4))))
    rows = sample_rows(3)
    expected, out = model.run(rows), np.empty_like(rows)
    model.upload(rows)
    model.run_steps()
    with monkeypatch.context() as patch:
        patch.setattr(PaddedRunner, "run_steps", failing(UNCLEAR))
        with pytest.raises(ModelFailure):
            model.run_steps()
    model.download(out)
    np.testing.assert_array_equal(out, expected)


NO_CODE = "CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device"


def test_a_gpu_without_code_in_onnxruntime_is_named(
    bucketed: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.runtime.session.compute_capability", lambda device_id: (10, 0))
    model = bucketed(model_bytes())
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("GPU 0 has compute capability 10.0, and onnxruntime-gpu")
    monkeypatch.setattr(PaddedRunner, "run_steps", failing(NO_CODE))
    with pytest.raises(DeviceLost, match=r"no kernel image.*; GPU 0 has compute capability 10\.0"):
        model.warm_up()


def test_a_session_with_graphs_is_run_in_one_thread(
    bucketed: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    run_steps = PaddedRunner.run_steps

    def recorded(self: PaddedRunner, keep_going: Callable[[], bool] = bool) -> None:
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
    before = set(threading.enumerate())
    model = bucketed(model_bytes(), cuda=CudaOptions(graphs=True))
    model.warm_up()
    (first,) = set(threading.enumerate()) - before
    model.reduce_max_batch()
    first.join(10)
    (second,) = set(threading.enumerate()) - before
    model.close()
    second.join(10)
    assert not set(threading.enumerate()) - before


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
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
@pytest.mark.parametrize(
    ("listed", "reason"),
    [(["CPUExecutionProvider"], "built without it"), (["CUDAExecutionProvider"], "cannot be used")],
)
def test_cuda_that_does_not_load_is_refused_and_auto_says_why(
    listed: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a missing driver the provider is listed, but its session comes up on the CPU or not at all."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    model = OnnxModel(model_bytes(), device="auto")
    assert (model.device, model.buckets) == ("cpu", None)
    assert (model.fallback_reason or "").startswith("CUDA cannot be used: ")
    assert reason in (model.fallback_reason or "")
    with pytest.raises(CudaUnavailable, match=reason):
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
