import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest

from service.domain.errors import ModelFailure, StartupError
from service.domain.latents import FloatRows
from service.domain.model import DeviceLost, DeviceOutOfMemory
from service.runtime.onnx_model import OnnxModel, bounded_buckets
from service.runtime.session import CudaUnavailable
from tests.helpers.device_fakes import cuda_on_the_cpu
from tests.helpers.onnx_models import (
    ImageShape,
    every_other_row,
    hungry,
    make_card,
    model_bytes,
    reference,
    sample_rows,
    serialise,
)

SHAPES: list[ImageShape] = [(1, 8, 8), (3, 8, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_rows_bits_depend_on_nothing_but_the_row(shape: ImageShape, threads: int) -> None:
    model = OnnxModel(model_bytes(make_card(shape=shape)), device="cpu", threads=threads)
    rows = sample_rows(64, shape)
    alone = np.concatenate([model.run(row[np.newaxis]) for row in rows])
    np.testing.assert_allclose(alone, reference(rows), atol=1e-6)
    for size in (1, 2, 3, 5, 8, 13, 31, 64):
        for start in (0, 64 - size):
            some = slice(start, start + size)
            np.testing.assert_array_equal(model.run(rows[some]), alone[some], strict=True)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no ign.card metadata"),
        (model_bytes()[:150], "not a model onnxruntime can load"),
        (serialise(onnx.load_from_string(model_bytes()).graph, None), "no ign.card metadata"),
        (model_bytes().replace(b'"description"', b'"descripti\xffn"'), "its protobuf is damaged"),
    ],
)
def test_files_that_are_no_model_are_refused_in_one_line(data: bytes, says: str) -> None:
    with pytest.raises(StartupError, match=says) as caught:
        OnnxModel(data, device="cpu")
    assert "\n" not in caught.value.detail
    assert "/onnxruntime" not in caught.value.detail


def test_another_format_of_onnxruntime_is_refused(tmp_path: Path) -> None:
    """A file of the format ORT could escape the check of the protobuf."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    onnxruntime.InferenceSession(model_bytes(), options, providers=["CPUExecutionProvider"])
    data = (tmp_path / "model.ort").read_bytes()
    # so the refusal is ours
    assert onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    with pytest.raises(StartupError, match="not a model onnxruntime can load"):
        OnnxModel(data, device="cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_out_of_memory_has_its_own_error(
    device: Literal["cpu", "cuda"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buckets are given up until none is left, and no old session holds memory of a GPU when a
    new one starts.
    """
    alive: list[weakref.ref[Any]] = []
    start = onnxruntime.InferenceSession

    def counted(*args: Any, **options: Any) -> Any:
        assert device == "cpu" or not [each for each in alive if each() is not None]
        session = start(*args, **options)
        alive.append(weakref.ref(session))
        return session

    cuda_on_the_cpu(monkeypatch)
    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    # one session at a time
    model = OnnxModel(hungry(2**45, buckets=(64,)), device=device)
    try:
        model.run(sample_rows(2))
    except DeviceOutOfMemory as exc:
        said = str(exc)
        with pytest.raises(DeviceOutOfMemory):
            model.reduce_max_batch()  # within the handler, as a scheduler may
    assert said.startswith("2 rows do not fit")
    assert len(alive) >= 2
    assert model.buckets == (None if device == "cpu" else (1,))
    with pytest.raises(DeviceOutOfMemory):
        model.warm_up()
    model.close()
    with pytest.raises(ModelFailure, match="cannot be opened"):
        model.run(sample_rows(1))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_lost_rows_are_model_failures(
    device: Literal["cpu", "cuda"], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_on_the_cpu(monkeypatch)
    with pytest.raises(ModelFailure, match="failed on these rows") as caught:
        OnnxModel(every_other_row(), device=device).run(sample_rows(2))
    assert caught.value.__cause__ is not None


HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def bucketed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., OnnxModel]:
    """Models that run the code path of CUDA, with sessions and buffers on the CPU."""
    cuda_on_the_cpu(monkeypatch)
    return lambda data, **options: OnnxModel(data, device="cuda", **options)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[FloatRows], str]], None]:
    """Makes sessions raise what a function says to their rows, if it says anything."""
    run = onnxruntime.InferenceSession.run

    def fail(message_to: Callable[[FloatRows], str]) -> None:
        def run_or_fail(session: Any, names: list[str], inputs: dict[str, FloatRows]) -> Any:
            if message := message_to(inputs["x"]):
                raise RuntimeError(message)
            return run(session, names, inputs)

        monkeypatch.setattr(onnxruntime.InferenceSession, "run", run_or_fail)

    return fail


@pytest.mark.parametrize("shape", SHAPES)
def test_buckets_give_the_rows_of_exact_batches(
    bucketed: Callable[..., OnnxModel], shape: ImageShape
) -> None:
    data = model_bytes(make_card(shape=shape, buckets=(2, 4, 8)))
    padded = bucketed(data)
    exact = OnnxModel(data, device="cpu")
    padded.warm_up()
    for n in (1, 2, 3, 4, 7, 8, 9, 21, 3):
        rows = sample_rows(n, shape, seed=n)
        result = padded.run(rows)
        expected = exact.run(rows)
        np.testing.assert_array_equal(padded.run(rows), expected, strict=True)
        # the second run has not overwritten it
        np.testing.assert_array_equal(result, expected, strict=True)


@pytest.mark.parametrize(
    ("given", "left"),
    [((1, 4, 8), [(1, 4), (1,), (1,)]), ((8,), [(4,), (2,), (1,)])],
)
def test_reducing_the_batch_halves_the_single_bucket(
    given: tuple[int, ...], left: list[tuple[int, ...]], bucketed: Callable[..., OnnxModel]
) -> None:
    """Of several buckets it gives up the largest."""
    model = bucketed(model_bytes(make_card(buckets=given)))
    for buckets in left:
        model.reduce_max_batch()
        assert model.buckets == buckets
    assert len(model.run(sample_rows(5))) == 5


UNCLEAR = "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED"
ILLEGAL = "CUDA failure 700: an illegal memory access was encountered"
MEMORY = "CUDA failure 2: out of memory"


@pytest.mark.parametrize(
    ("said", "probe_says", "kind"),
    [
        (MEMORY, "", DeviceOutOfMemory),
        (ILLEGAL, "", DeviceLost),
        ("the node has no implementation", "", ModelFailure),
        # a row of zeros fails as well, so these rows are not to blame
        (UNCLEAR, UNCLEAR, DeviceLost),
        (UNCLEAR, MEMORY, ModelFailure),
        (UNCLEAR, "", ModelFailure),  # a row of zeros runs
    ],
)
def test_an_error_is_recognised_by_its_message_and_an_unclear_one_by_a_row_of_zeros(
    said: str,
    probe_says: str,
    kind: type[Exception],
    bucketed: Callable[..., OnnxModel],
    failing: Callable[[Callable[[FloatRows], str]], None],
) -> None:
    probes: list[int] = []

    def message(rows: FloatRows) -> str:
        if not rows.any():
            probes.append(len(rows))
        text = said if rows.any() else probe_says
        return text and f"[ONNXRuntimeError] : 1 : FAIL : {text} ; GPU=0 ; hostname=here"

    failing(message)
    with pytest.raises(kind) as caught:
        bucketed(model_bytes(make_card(buckets=(1, 4, 8)))).run(sample_rows(4))
    assert probes == [1] * (said == UNCLEAR)
    error = caught.value
    reason = error.reason if isinstance(error, ModelFailure) else str(error)
    assert reason.endswith(said)  # not what the probe says


@pytest.mark.parametrize(
    ("limit", "buckets"), [(64, (4, 8, 32)), (31, (4, 8)), (8, (4, 8)), (3, (3,))]
)
def test_buckets_are_bounded(limit: int, buckets: tuple[int, ...]) -> None:
    assert bounded_buckets((4, 8, 32), limit) == buckets


@pytest.mark.skipif(HAS_CUDA, reason="needs an onnxruntime without CUDA")
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
@pytest.mark.parametrize(
    ("listed", "reason"),
    [(["CPUExecutionProvider"], "built without it"), (["CUDAExecutionProvider"], "cannot be used")],
)
def test_cuda_that_does_not_load_is_refused_and_auto_says_why(
    listed: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a missing driver the provider is listed, but its session comes up on the CPU or not at
    all.
    """
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    model = OnnxModel(model_bytes(), device="auto")
    assert (model.device, model.buckets) == ("cpu", None)
    assert (model.fallback_reason or "").startswith("CUDA cannot be used: ")
    assert reason in (model.fallback_reason or "")
    with pytest.raises(CudaUnavailable, match=reason):
        OnnxModel(model_bytes(), device="cuda")
