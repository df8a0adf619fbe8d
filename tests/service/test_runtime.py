import hashlib
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from service import runtime
from service.domain.errors import ModelFailure, StartupError
from service.domain.latents import FrequencyStatistics
from service.domain.tasks import DeviceOutOfMemory
from service.runtime import BucketRunner, CudaUnavailable, OnnxModel, bounded_buckets, cuda_options
from tests.service.onnx_models import (
    Shape,
    graph,
    make_card,
    model_bytes,
    reference,
    sample_rows,
    serialise,
)

SHAPES: list[Shape] = [(1, 8, 8), (3, 8, 8)]
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def open_cpu(data: bytes, **options: Any) -> OnnxModel:
    return OnnxModel(data, device="cpu", **options)


def hungry(numbers: int) -> bytes:
    """A network that needs ``numbers`` float32 of scratch space for every batch."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Expand", ["mean", "length"], ["scratch"]),
        helper.make_node("ReduceMax", ["scratch"], ["top"], keepdims=0),
        helper.make_node("Add", ["x", "top"], ["y"]),
    ]
    shape = ("batch", 1, 8, 8)
    return serialise(graph(nodes, {"length": np.array([numbers])}, shape, shape), make_card())


def divided_by_first_row() -> bytes:
    """A network whose integer division fails when the first number of a batch is 0."""
    nodes = [
        helper.make_node("Slice", ["x", "start", "stop"], ["first"]),
        helper.make_node("Reshape", ["first", "one"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["count"], to=TensorProto.INT64),
        helper.make_node("Expand", ["x", "count"], ["y"]),
    ]
    shape = ("batch", 1, 8, 8)
    zeros, ones = np.zeros(4, np.int64), np.ones(4, np.int64)
    constants = {"start": zeros, "stop": ones, "one": np.array([1])}
    return serialise(graph(nodes, constants, shape, shape), make_card())


@pytest.mark.parametrize("shape", SHAPES)
def test_runs_what_the_file_says(shape: Shape) -> None:
    data = model_bytes(make_card(shape=shape))
    model = open_cpu(data)
    rows = sample_rows(5, shape)
    np.testing.assert_allclose(model.run(rows), reference(rows), atol=1e-6)
    assert model.digest == hashlib.sha256(data).hexdigest()
    assert (model.card, model.shape, model.noise.shape) == (make_card(shape=shape), shape, shape)
    assert (model.device, model.provider, model.fallback_reason) == ("cpu", "CPUExecutionProvider", None)
    assert model.buckets is None


def test_frequency_statistics_come_with_the_file() -> None:
    card = make_card(noise={"kind": "frequency", "norm": 8.0})
    arrays = sample_rows(4)
    data = serialise(onnx.load_from_string(model_bytes()).graph, card, FrequencyStatistics(*arrays))
    statistics = open_cpu(data).noise.statistics
    assert statistics is not None
    np.testing.assert_array_equal(statistics.imag_std, arrays[3])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_rows_bits_depend_on_nothing_but_the_row(shape: Shape, threads: int) -> None:
    model = open_cpu(model_bytes(make_card(shape=shape)), threads=threads)
    rows = sample_rows(64, shape)
    alone = np.concatenate([model.run(row[np.newaxis]) for row in rows])
    for size in (1, 2, 3, 5, 8, 13, 31, 64):
        for start in (0, 64 - size):
            np.testing.assert_array_equal(
                model.run(rows[start : start + size]), alone[start : start + size], strict=True
            )


def test_out_may_be_a_slice_strided_or_the_rows_themselves() -> None:
    model = open_cpu(model_bytes())
    rows = sample_rows(6)
    expected = model.run(rows)

    whole = np.full((10, 1, 8, 8), 7.0, dtype=np.float32)
    part = whole[2:8]
    assert model.run(rows, part) is part
    np.testing.assert_array_equal(whole[2:8], expected)
    assert (whole[:2] == 7.0).all()
    assert (whole[8:] == 7.0).all()

    every_other = np.zeros((12, 1, 8, 8), dtype=np.float32)[::2]
    np.testing.assert_array_equal(model.run(rows, every_other), expected)
    np.testing.assert_array_equal(model.run(rows, rows), expected)


def test_rows_need_not_be_contiguous() -> None:
    model = open_cpu(model_bytes())
    rows = sample_rows(8)
    np.testing.assert_array_equal(model.run(rows[::2]), model.run(rows[::2].copy()))
    turned = rows.transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(model.run(turned), model.run(turned.copy()))


def test_an_answer_is_not_overwritten_by_the_next() -> None:
    model = open_cpu(model_bytes())
    first = model.run(sample_rows(2))
    kept = first.copy()
    model.run(sample_rows(2, seed=1))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((0, 1, 8, 8), np.float32),
        np.zeros((1, 8, 8), np.float32),
        np.zeros((1, 3, 8, 8), np.float32),
        np.zeros((1, 1, 8, 9), np.float32),
        np.zeros((1, 1, 8, 8), np.float64),
    ],
)
def test_other_rows_are_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match="rows must be float32"):
        open_cpu(model_bytes()).run(rows)


@pytest.mark.parametrize("out", [np.zeros((3, 1, 8, 8), np.float32), np.zeros((2, 1, 8, 8), np.float64)])
def test_other_out_is_refused(out: Any) -> None:
    with pytest.raises(ValueError, match="out must be float32"):
        open_cpu(model_bytes()).run(sample_rows(2), out)


def test_a_closed_model_does_not_run() -> None:
    model = open_cpu(model_bytes())
    model.close()
    with pytest.raises(ModelFailure, match="closed"):
        model.run(sample_rows(1))


# Files that are no model for this service


def signature(inputs: Sequence[str | int], outputs: Sequence[str | int], dtype: int = TensorProto.FLOAT) -> bytes:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return serialise(graph(nodes, {}, inputs, outputs, dtype), make_card())


def renamed(old: str, new: str) -> bytes:
    model = onnx.load_from_string(signature(("n", 1, 8, 8), ("n", 1, 8, 8)))
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    node = model.graph.node[0]
    node.input[0] = new if node.input[0] == old else node.input[0]
    node.output[0] = new if node.output[0] == old else node.output[0]
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a model onnxruntime can load"),
        (b"\x08\x0agarbage" * 9, "not a model onnxruntime can load"),
        (model_bytes()[:150], "not a model onnxruntime can load"),
        (serialise(onnx.load_from_string(model_bytes()).graph, None), "no ign.card metadata"),
        (signature((4, 1, 8, 8), ("n", 1, 8, 8)), "input x is not float32"),
        (signature(("n", 3, 8, 8), ("n", 3, 8, 8)), "input x is not float32"),
        (signature(("n", 1, "h", 8), ("n", 1, "h", 8)), "input x is not float32"),
        (signature(("n", 1, 8, 8), ("n", 1, 8, 8), TensorProto.DOUBLE), "input x is not float32"),
        (signature(("n", 1, 8, 8), ("n", 64)), "output y is not float32"),
        (renamed("x", "image"), "exactly one input, named x"),
        (renamed("y", "image"), "exactly one output, named y"),
    ],
)
def test_files_that_are_no_model_are_refused_in_one_line(data: bytes, says: str) -> None:
    with pytest.raises(StartupError, match=says) as caught:
        open_cpu(data)
    assert "\n" not in caught.value.detail
    assert "/onnxruntime" not in caught.value.detail


def test_weights_outside_the_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ("batch", 1, 8, 8)
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    body = graph(nodes, {"w": np.full((1, 8, 8), 0.5, np.float32)}, shape, shape)
    model = onnx.load_from_string(serialise(body, make_card()))
    monkeypatch.chdir(tmp_path)
    onnx.save_model(model, "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    data = Path("model.onnx").read_bytes()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert session.get_providers() == ["CPUExecutionProvider"]  # so the refusal is ours, not the file's fault
    with pytest.raises(StartupError, match="not a model onnxruntime can load"):
        open_cpu(data)


# Failures while running


@pytest.mark.parametrize("numbers", [2**45, 2**61])
def test_memory_shortage_has_its_own_error(numbers: int) -> None:
    model = open_cpu(hungry(numbers))
    with pytest.raises(DeviceOutOfMemory, match="2 rows do not fit"):
        model.run(sample_rows(2))
    with pytest.raises(DeviceOutOfMemory):
        model.shed()
    with pytest.raises(DeviceOutOfMemory):
        model.warm_up()


def test_shedding_frees_the_old_session_before_it_starts_the_new(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Any]] = []
    start = onnxruntime.InferenceSession

    def counted(*args: Any, **options: Any) -> Any:
        assert not [session for session in alive if session() is not None]
        session = start(*args, **options)
        alive.append(weakref.ref(session))
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    model = open_cpu(hungry(2**45))
    try:
        model.run(sample_rows(1))
    except DeviceOutOfMemory:
        with pytest.raises(DeviceOutOfMemory):
            model.shed()  # within the handler, as a scheduler may
    assert len(alive) == 2


def test_shedding_keeps_a_cpu_model_as_it_was() -> None:
    model = open_cpu(model_bytes())
    before = model.run(sample_rows(3))
    model.shed()
    assert model.buckets is None
    np.testing.assert_array_equal(model.run(sample_rows(3)), before)


def test_other_failures_are_the_models() -> None:
    model = open_cpu(divided_by_first_row())
    with pytest.raises(ModelFailure, match="failed on these rows") as caught:
        model.run(np.full((2, 1, 8, 8), 7.0, np.float32))
    assert caught.value.__cause__ is not None


def every_other_row() -> bytes:
    """A network that gives half as many rows as it is given."""
    nodes = [helper.make_node("Slice", ["x", "start", "stop", "axis", "step"], ["y"])]
    constants = {"start": [0], "stop": [2**30], "axis": [0], "step": [2]}
    shapes = ("batch", 1, 8, 8), ("half", 1, 8, 8)
    return serialise(graph(nodes, {k: np.array(v) for k, v in constants.items()}, *shapes), make_card())


def test_a_model_that_loses_rows_fails() -> None:
    with pytest.raises(ModelFailure):
        open_cpu(every_other_row()).run(sample_rows(2))


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
    padded, exact = bucketed(data), open_cpu(data)
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
