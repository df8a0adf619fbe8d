import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest

from service.domain.errors import ModelFailure
from service.domain.latents import FloatRows
from service.domain.model import DeviceLost, DeviceOutOfMemory, never_continue
from service.runtime.onnx_model import OnnxModel, bounded_buckets
from service.runtime.runners import PaddedRunner
from service.runtime.session import CudaOptions, CudaUnavailable
from tests.helpers.device_fakes import cuda_on_the_cpu
from tests.helpers.onnx_models import (
    ImageShape,
    make_card,
    model_bytes,
    sample_rows,
)

SHAPES: list[ImageShape] = [(1, 8, 8), (3, 8, 8)]
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


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


@pytest.mark.parametrize("graphs", [False, True])
def test_rows_kept_on_the_device_are_the_same(bucketed: Callable[..., OnnxModel], graphs: bool) -> None:
    data = model_bytes(make_card(buckets=(1, 4, 8)))
    model, exact = bucketed(data, cuda=CudaOptions(graphs=graphs)), OnnxModel(data, device="cpu")
    model.warm_up()
    device_batch = model.device_batch
    assert device_batch is not None
    for rows, steps in ((1, 2), (3, 0), (3, 5), (8, 1)):
        expected = sample_rows(rows)
        out = np.empty_like(expected)
        device_batch.upload(expected)
        for _ in range(steps):
            device_batch.run_steps()
            expected = exact.run(expected)
        device_batch.download(out)
        np.testing.assert_array_equal(out, expected)
        model.run(sample_rows(2, seed=9))  # other rows, in between
    model.close()
    with pytest.raises(ModelFailure, match="closed"):
        device_batch.run_steps()
    assert exact.device_batch is None
    with pytest.raises(ValueError, match="device"):
        exact.upload(sample_rows(1))


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


UNCLEAR = "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED"
ILLEGAL = "CUDA failure 700: an illegal memory access was encountered"
MEMORY = "CUDA failure 2: out of memory"


@pytest.mark.parametrize(
    ("said", "probe_says", "in_run", "in_step"),
    [
        (MEMORY, "", DeviceOutOfMemory, DeviceOutOfMemory),
        (ILLEGAL, "", DeviceLost, DeviceLost),
        ("the node has no implementation", "", ModelFailure, ModelFailure),
        (UNCLEAR, UNCLEAR, DeviceLost, ModelFailure),  # a row of zeros fails as well, so these rows are not to blame
        (UNCLEAR, ILLEGAL, DeviceLost, ModelFailure),
        (UNCLEAR, MEMORY, ModelFailure, ModelFailure),
        (UNCLEAR, "", ModelFailure, ModelFailure),  # a row of zeros runs
    ],
)
def test_an_error_is_recognised_by_its_message_and_an_unclear_one_by_a_row_of_zeros(
    said: str,
    probe_says: str,
    in_run: type[Exception],
    in_step: type[Exception],
    bucketed: Callable[..., OnnxModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows that stay on the device are not probed for: a probe would overwrite those of the step before."""
    probes: list[int] = []

    def fail(rows: FloatRows) -> None:
        if not rows.any():
            probes.append(len(rows))
        if message := said if rows.any() else probe_says:
            raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : {message} ; GPU=0 ; hostname=here")

    x = sample_rows(4)
    model = bucketed(model_bytes(make_card(buckets=(1, 4, 8))))
    monkeypatch.setattr(PaddedRunner, "__call__", lambda self, rows, out: fail(rows))
    monkeypatch.setattr(PaddedRunner, "run_steps", lambda self, keep_going: fail(x))
    with pytest.raises(in_run) as of_run:
        model.run(x)
    assert probes == [1] * (said == UNCLEAR)
    model.upload(x)
    with pytest.raises(in_step) as of_step:
        model.run_steps()
    assert probes == [1] * (said == UNCLEAR)
    for error in (of_run.value, of_step.value):
        assert (error.reason if isinstance(error, ModelFailure) else str(error)).endswith(
            said
        )  # not what the probe says


def test_a_gpu_without_code_in_onnxruntime_is_named(
    bucketed: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution")

    monkeypatch.setattr("service.runtime.devices.compute_capability", lambda device_id: (10, 0))
    model = bucketed(model_bytes())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    monkeypatch.setattr(PaddedRunner, "run_steps", fail)
    with pytest.raises(DeviceLost, match=r"no kernel image.*; GPU 0 has compute capability 10\.0"):
        model.warm_up()


def test_a_session_with_graphs_runs_in_one_thread_that_ends_with_it(
    bucketed: Callable[..., OnnxModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[threading.Thread] = set()
    run_steps = PaddedRunner.run_steps

    def recorded(self: PaddedRunner, keep_going: Callable[[], bool] = never_continue) -> None:
        seen.add(threading.current_thread())
        run_steps(self, keep_going)

    monkeypatch.setattr(PaddedRunner, "run_steps", recorded)
    before = set(threading.enumerate())
    model = bucketed(model_bytes(), cuda=CudaOptions(graphs=True))
    model.warm_up()
    caller = threading.Thread(target=model.run, args=(sample_rows(2),))
    caller.start()
    caller.join()
    (first,) = seen
    model.reduce_max_batch()
    model.close()
    (second,) = seen - {first}
    for thread in (first, second):
        thread.join(10)
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize(
    ("limit", "single", "buckets"),
    [(64, False, (4, 8, 32)), (31, False, (4, 8)), (8, True, (8,)), (3, False, (3,)), (3, True, (3,))],
)
def test_buckets_are_bounded(limit: int, single: bool, buckets: tuple[int, ...]) -> None:
    assert bounded_buckets((4, 8, 32), limit, single=single) == buckets


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
