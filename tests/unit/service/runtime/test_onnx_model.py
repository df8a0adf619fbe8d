import hashlib
import re
import weakref
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from service.domain.errors import ModelFailure, StartupError
from service.domain.model import DeviceOutOfMemory
from service.runtime.onnx_model import OnnxModel
from service.runtime.session import CudaOptions, CudaUnavailable
from tests.helpers.device_fakes import cuda_on_the_cpu
from tests.helpers.onnx_models import (
    OPSET,
    ImageShape,
    every_other_row,
    graph,
    hungry,
    make_card,
    model_bytes,
    reference,
    sample_rows,
    serialise,
)

SHAPES: list[ImageShape] = [(1, 8, 8), (3, 8, 8)]


def open_cpu(data: bytes, **options: Any) -> OnnxModel:
    return OnnxModel(data, device="cpu", **options)


def stretched_by_its_first_number() -> bytes:
    """A network that broadcasts its rows to the width their first number says: 7 does not fit 8."""
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
def test_it_computes_the_network_of_the_file(shape: ImageShape) -> None:
    data = model_bytes(make_card(shape=shape))
    model = open_cpu(data)
    rows = sample_rows(5, shape)
    np.testing.assert_allclose(model.run(rows), reference(rows), atol=1e-6)
    assert model.digest == hashlib.sha256(data).hexdigest()
    assert (model.card, model.shape, model.noise.shape) == (make_card(shape=shape), shape, shape)
    assert (model.device, model.provider, model.fallback_reason) == ("cpu", "CPUExecutionProvider", None)
    assert model.buckets is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_rows_bits_depend_on_nothing_but_the_row(shape: ImageShape, threads: int) -> None:
    model = open_cpu(model_bytes(make_card(shape=shape)), threads=threads)
    rows = sample_rows(64, shape)
    alone = np.concatenate([model.run(row[np.newaxis]) for row in rows])
    for size in (1, 2, 3, 5, 8, 13, 31, 64):
        for start in (0, 64 - size):
            np.testing.assert_array_equal(
                model.run(rows[start : start + size]), alone[start : start + size], strict=True
            )


def test_rows_and_out_may_be_strided_or_the_same() -> None:
    model = open_cpu(model_bytes())
    rows = sample_rows(6)
    expected = model.run(rows)
    kept = expected.copy()
    for view in (rows[::2], rows.transpose(0, 1, 3, 2)):
        np.testing.assert_array_equal(model.run(view), model.run(view.copy()))
    np.testing.assert_array_equal(expected, kept)  # a result is not overwritten by the next one

    whole = np.full((10, 1, 8, 8), 7.0, dtype=np.float32)
    part = whole[2:8]
    assert model.run(rows, part) is part
    np.testing.assert_array_equal(whole[2:8], expected)
    assert (whole[:2] == 7.0).all()
    assert (whole[8:] == 7.0).all()

    every_other = np.zeros((12, 1, 8, 8), dtype=np.float32)[::2]
    np.testing.assert_array_equal(model.run(rows, every_other), expected)
    np.testing.assert_array_equal(model.run(rows, rows), expected)


@pytest.mark.parametrize(
    ("rows", "out", "message"),
    [
        *((np.zeros(shape, np.float32), None, "rows") for shape in ((0, 1, 8, 8), (1, 8, 8), (1, 3, 8, 8))),
        (np.zeros((1, 1, 8, 8)), None, "rows"),
        (sample_rows(2), sample_rows(3), "out"),
        (sample_rows(2), np.zeros((2, 1, 8, 8)), "out"),
    ],
)
def test_other_arrays_are_refused(rows: Any, out: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message} must be float32"):
        open_cpu(model_bytes()).run(rows, out)


def model_of(x: onnx.ValueInfoProto, y: onnx.ValueInfoProto) -> bytes:
    """A network that returns its input."""
    return serialise(helper.make_graph([helper.make_node("Identity", [x.name], [y.name])], "f", [x], [y]), make_card())


def value(name: str, *shape: str | int, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


GOOD = ("n", 1, 8, 8)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a model onnxruntime can load"),
        (b"\x08\x0agarbage" * 9, "not a model onnxruntime can load"),
        (model_bytes()[:150], "not a model onnxruntime can load"),
        (serialise(onnx.load_from_string(model_bytes()).graph, None), "no ign.card metadata"),
        (model_of(value("x", 4, 1, 8, 8), value("y", *GOOD)), "input x is not float32"),
        (model_of(value("x", "n", 3, 8, 8), value("y", "n", 3, 8, 8)), "input x is not float32"),
        (model_of(value("x", *GOOD, dtype=11), value("y", *GOOD, dtype=11)), "input x is not float32"),
        (model_of(value("x", *GOOD), value("y", "n", 64)), "output y is not float32"),
        (model_of(value("image", *GOOD), value("y", *GOOD)), "exactly one input, named x"),
        (model_of(value("x", *GOOD), value("image", *GOOD)), "exactly one output, named y"),
    ],
)
def test_files_that_are_no_model_are_refused_in_one_line(data: bytes, says: str) -> None:
    with pytest.raises(StartupError, match=says) as caught:
        open_cpu(data)
    assert "\n" not in caught.value.detail
    assert "/onnxruntime" not in caught.value.detail


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
@pytest.mark.parametrize(("field", "what"), [("opset", "opset"), ("ir_version", "IR version")])
def test_a_file_of_a_later_onnx_says_what_it_needs_and_what_there_is(
    field: str, what: str, device: Literal["auto", "cpu", "cuda"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not CUDA's fault: a session on the CPU would say the same."""
    model = onnx.load_from_string(model_bytes())
    model.ir_version = 998 if field == "ir_version" else model.ir_version
    model.opset_import[0].version = 998 if field == "opset" else OPSET
    start, started = onnxruntime.InferenceSession, list[object]()

    def counted(data: bytes, *_: Any, **options: Any) -> Any:
        started.append(options["providers"])
        return start(data, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    there = re.escape(onnxruntime.__version__)
    message = (
        rf"^needs ONNX {what} 998, and onnxruntime {there} supports up to (\d+): .* export the model for {what} \1$"
    )
    with pytest.raises(StartupError, match=message) as caught:
        OnnxModel(model.SerializeToString(), device=device)
    assert not isinstance(caught.value, CudaUnavailable)
    assert len(started) == 1


def test_another_format_of_onnxruntime_is_refused(tmp_path: Path) -> None:
    """A file of the format ORT could escape the check of the protobuf."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    onnxruntime.InferenceSession(model_bytes(), options, providers=["CPUExecutionProvider"])
    data = (tmp_path / "model.ort").read_bytes()
    assert onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])  # so the refusal is ours
    with pytest.raises(StartupError, match="not a model onnxruntime can load"):
        open_cpu(data)


@pytest.mark.parametrize(("numbers", "device"), [(2**45, "cpu"), (2**61, "cpu"), (2**45, "cuda")])
def test_out_of_memory_has_its_own_error(
    numbers: int, device: Literal["cpu", "cuda"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buckets are given up until none is left, and no old session holds memory when a new one starts."""
    alive: list[weakref.ref[Any]] = []
    start = onnxruntime.InferenceSession

    def counted(*args: Any, **options: Any) -> Any:
        assert not [session for session in alive if session() is not None]
        session = start(*args, **options)
        alive.append(weakref.ref(session))
        return session

    cuda_on_the_cpu(monkeypatch)
    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    model = OnnxModel(hungry(numbers), device=device, cuda=CudaOptions(graphs=True))
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
    with pytest.raises(ModelFailure, match="closed"):
        model.run(sample_rows(1))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("data", [stretched_by_its_first_number(), every_other_row()])
def test_other_errors_and_lost_rows_are_model_failures(
    data: bytes, device: Literal["cpu", "cuda"], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_on_the_cpu(monkeypatch)
    with pytest.raises(ModelFailure, match="failed on these rows") as caught:
        OnnxModel(data, device=device).run(np.full((2, 1, 8, 8), 7.0, np.float32))
    assert caught.value.__cause__ is not None
