"""The CUDA path on the device: the same pictures as training's, the same bits whoever else is in the batch."""

import asyncio
import resource
import subprocess
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from service.card import ModelCard
from service.domain.latents import FloatRows
from service.domain.tasks import Applied, DeviceOutOfMemory, Plan
from service.repository import LoadedModel, Repository
from service.runtime import OnnxModel
from service.scheduler import Scheduler
from service.sessions import TENSORRT, Cuda, CudaUnavailable
from tests.live import ROOT
from tests.service.onnx_models import graph, hungry, make_card, model_bytes, reference, sample_rows, serialise

pytestmark = pytest.mark.gpu

SHIPPED = sorted(path.parent.parent.name for path in (ROOT / "models").glob("*/1/model.onnx"))
SHAPES = [(1, 28, 28), (3, 64, 64)]
BUCKETS = (1, 2, 4, 8, 16, 32, 64)


def on_cuda(data: bytes, cuda: Cuda | None = None) -> OnnxModel:
    model = OnnxModel(data, device="cuda", cuda=cuda)
    assert model.provider == "CUDAExecutionProvider"
    model.warm_up()
    return model


def shipped(name: str, precision: Literal["fp32", "fp16"] = "fp32", cuda: Cuda | None = None) -> LoadedModel:
    """Verified: its golden rows come out within the card's tolerance in every bucket and place, or this raises."""
    open_model = partial(OnnxModel, device="cuda", cuda=cuda)
    return Repository(ROOT / "models", open_model, default=name, precision=precision).load(f"{name}/1")


def stepped(model: OnnxModel, x: FloatRows, steps: int) -> FloatRows:
    there, out = model.resident, np.empty_like(x)
    assert there is not None
    there.load(x)
    for _ in range(steps):
        there.steps()
    there.fetch(out)
    return out


# Parity


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", SHIPPED)
def test_golden_rows(name: str, precision: Literal["fp32", "fp16"]) -> None:
    if precision == "fp16" and not (ROOT / "models" / name / "1" / "model.fp16.onnx").is_file():
        pytest.skip(f"{name} has no model.fp16.onnx")
    loaded = shipped(name, precision, Cuda(half=precision == "fp16"))
    assert loaded.device == "cuda"
    assert loaded.golden.batches == BUCKETS
    assert loaded.golden.difference <= getattr(loaded.card.tolerance, precision)
    loaded.close()


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_rows_of_the_cpu(shape: tuple[int, int, int], deterministic: bool) -> None:
    model = on_cuda(model_bytes(make_card(shape=shape)), Cuda(deterministic=deterministic))
    for n in (1, 3, 64, 70):
        rows = sample_rows(n, shape)
        np.testing.assert_allclose(model.run(rows), reference(rows), atol=1e-5)


# The same bits


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("name", SHIPPED)
def test_a_rows_bits_depend_neither_on_its_place_nor_on_its_neighbours(name: str, bucket: int) -> None:
    model = shipped(name).model
    x = sample_rows(bucket, model.shape)
    first = model.run(x)
    others = sample_rows(bucket, model.shape, seed=1)
    for place in {0, bucket // 2, bucket - 1}:
        others[place] = x[0]
        np.testing.assert_array_equal(model.run(others)[place], first[0])
        others = sample_rows(bucket, model.shape, seed=2 + place)


@pytest.mark.parametrize("name", SHIPPED)
def test_graphs_change_no_bit(name: str) -> None:
    data = (ROOT / "models" / name / "1" / "model.onnx").read_bytes()
    # The heuristic chooses the same convolutions every time; a search need not.
    plain, graphs = on_cuda(data, Cuda(deterministic=True)), on_cuda(data, Cuda(deterministic=True, graphs=True))
    for seed in range(3):
        x = sample_rows(64, plain.shape, seed)
        np.testing.assert_array_equal(graphs.run(x), plain.run(x))
        np.testing.assert_array_equal(stepped(graphs, x, 5), stepped(plain, x, 5))
    graphs.close()


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", SHIPPED)
def test_rows_that_stay_are_those_that_come_and_go(name: str, graphs: bool) -> None:
    model = shipped(name, cuda=Cuda(graphs=graphs)).model
    assert isinstance(model, OnnxModel)
    for n in (1, 3, 64):
        x = y = sample_rows(n, model.shape)
        for _ in range(7):
            y = model.run(y)
        np.testing.assert_array_equal(stepped(model, x, 7), y)
    model.close()


@pytest.mark.parametrize("graphs", [False, True])
def test_graphs_of_all_buckets_in_any_order(graphs: bool) -> None:
    model = on_cuda(model_bytes(make_card(buckets=(1, 2, 4, 8))), Cuda(graphs=graphs))
    for n in (8, 1, 3, 8, 2, 5, 1, 11):
        rows = sample_rows(n, seed=n)
        np.testing.assert_allclose(model.run(rows), reference(rows), atol=1e-5)
    model.close()


def test_through_the_scheduler() -> None:
    loaded = shipped(SHIPPED[0], cuda=Cuda(graphs=True))
    scheduler = Scheduler(loaded.model, max_batch_rows=64, queue_rows=64)
    scheduler.start()
    x = loaded.noise.rows(0, 0, 3)
    try:
        result = asyncio.run(scheduler.submit(x, Plan(applied=Applied(steps=200))))
    finally:
        scheduler.close()
    for _ in range(200):
        x = loaded.model.run(x)
    np.testing.assert_array_equal(result.rows, x)
    loaded.close()


# Memory


def widened(channels: int) -> bytes:
    """A network that needs ``channels`` × 256 bytes of scratch space for every row."""
    nodes = [
        helper.make_node("Expand", ["x", "wide"], ["scratch"]),
        helper.make_node("Tanh", ["scratch"], ["squashed"]),
        helper.make_node("ReduceMax", ["squashed", "axes"], ["y"], keepdims=1),
    ]
    shape = ("batch", 1, 8, 8)
    constants = {"wide": np.array([1, channels, 1, 1]), "axes": np.array([1])}
    return serialise(graph(nodes, constants, shape, shape), make_card())


def test_buckets_that_do_not_fit_are_given_up() -> None:
    model = on_cuda(widened(2**14), Cuda(memory_mib=128))  # 4 MiB a row: 64 rows do not fit, one does
    assert model.buckets is not None
    assert 1 <= model.buckets[-1] < 64
    rows = sample_rows(64)
    np.testing.assert_allclose(model.run(rows), np.tanh(rows), atol=1e-5)


def test_what_never_fits_says_so_and_leaves_the_device_usable() -> None:
    model = OnnxModel(hungry(2**28), device="cuda", cuda=Cuda(memory_mib=64))
    with pytest.raises(DeviceOutOfMemory):
        model.warm_up()
    assert model.buckets == (1,)
    model.close()
    rows = sample_rows(2)
    np.testing.assert_allclose(on_cuda(model_bytes()).run(rows), reference(rows), atol=1e-5)


def used_mib() -> float | None:
    """Memory in use on the first device, by anybody."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return float(said)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


@pytest.mark.slow
@pytest.mark.parametrize("graphs", [False, True])
def test_a_long_run_keeps_its_memory(graphs: bool) -> None:
    model = shipped(SHIPPED[0], cuda=Cuda(graphs=graphs)).model
    assert isinstance(model, OnnxModel)

    def work(rounds: int) -> None:
        for round_ in range(rounds):
            for n in (1, 3, 7, 20, 64):
                x = sample_rows(n, model.shape, seed=round_ % 5)
                model.run(x, x)
                stepped(model, x, 10)

    work(20)
    before, host = used_mib(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work(400)
    after = used_mib()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host < 64 * 1024  # KiB
    assert before is None or after is None or after - before < 64
    model.close()


# TensorRT


@pytest.fixture
def engines(tmp_path: Path) -> Cuda:
    if TENSORRT not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is built without TensorRT")
    return Cuda(tensorrt_cache=tmp_path)


@pytest.mark.slow
def test_tensorrt_reproduces_the_golden_rows_and_keeps_its_engine(engines: Cuda) -> None:
    try:
        loaded = shipped(SHIPPED[0], cuda=engines)
    except CudaUnavailable as exc:
        pytest.skip(exc.detail)
    assert loaded.provider == TENSORRT
    assert isinstance(loaded.card, ModelCard)
    loaded.close()
    assert engines.tensorrt_cache is not None
    kept = {path: path.stat().st_mtime_ns for path in engines.tensorrt_cache.rglob("*.engine")}
    assert kept
    shipped(SHIPPED[0], cuda=engines).close()
    assert {path: path.stat().st_mtime_ns for path in engines.tensorrt_cache.rglob("*.engine")} == kept
