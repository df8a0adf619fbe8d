"""CUDA on a GPU: the rows match the golden rows, and do not depend on the other rows of the
batch.
"""

import resource
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from onnx import helper

from benchmarks.harness.device import gpu
from service.domain.latents import FloatRows
from service.domain.model import DeviceOutOfMemory
from service.models.loaded import LoadedModel
from service.models.repository import Repository
from service.runtime import session
from service.runtime.onnx_model import OnnxModel
from service.runtime.session import CudaOptions, gpu_is_visible
from tests.helpers.live import MODELS, SHIPPED
from tests.helpers.onnx_models import (
    graph,
    hungry,
    make_card,
    model_bytes,
    reference,
    sample_rows,
    serialise,
)

pytestmark = pytest.mark.gpu

REFS = sorted(SHIPPED.values())
SHAPES = [(1, 28, 28), (3, 64, 64)]
BUCKETS = (1, 2, 4, 8, 16, 32, 64)


def on_cuda(data: bytes, cuda: CudaOptions | None = None) -> OnnxModel:
    model = OnnxModel(data, device="cuda", cuda=cuda)
    assert model.provider == "CUDAExecutionProvider"
    model.warm_up()
    return model


def shipped(
    name: str, precision: Literal["fp32", "fp16"] = "fp32", cuda: CudaOptions | None = None
) -> LoadedModel:
    """A verified model: loading raises unless the golden rows are within the card's tolerance in
    every bucket.
    """
    return Repository(
        MODELS,
        lambda data: [OnnxModel(data, device="cuda", cuda=cuda)],
        default=name,
        precision=precision,
    ).load(name)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", REFS)
def test_golden_rows(name: str, precision: Literal["fp32", "fp16"]) -> None:
    if precision == "fp16" and not (MODELS / name / "model.fp16.onnx").is_file():
        pytest.skip(f"{name} has no model.fp16.onnx")
    loaded = shipped(name, precision, CudaOptions(half=precision == "fp16"))
    assert loaded.device == "cuda"
    assert loaded.instances[0].buckets == loaded.card.buckets
    assert loaded.golden.difference <= getattr(loaded.card.tolerance, precision)
    loaded.close()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rows_of_the_cpu(shape: tuple[int, int, int]) -> None:
    model = on_cuda(model_bytes(make_card(shape=shape)))
    for n in (8, 1, 3, 64, 2, 70, 1):
        rows = sample_rows(n, shape, seed=n)
        np.testing.assert_allclose(model.run(rows), reference(rows), atol=1e-5)
    model.close()


@pytest.fixture(scope="module", params=REFS)
def served(request: pytest.FixtureRequest) -> Iterator[OnnxModel]:
    """A shipped model, opened once."""
    loaded = shipped(request.param)
    assert isinstance(loaded.instances[0], OnnxModel)
    yield loaded.instances[0]
    loaded.close()


def test_a_rows_bits_depend_neither_on_its_place_nor_on_its_neighbours(served: OnnxModel) -> None:
    """Within one batch size and one session; between batch sizes rows may differ, as the card
    allows.

    If the same batch gives other bits, cuDNN chose a convolution with an undefined order of
    summation. onnxruntime makes new plans when the batch size changes; it should choose the same
    convolutions.
    """
    first: dict[int, FloatRows] = {}
    for n in (*BUCKETS, 64, 1, 32, 2, 16, 4, 8, 1, 64):
        x = sample_rows(n, served.shape, seed=n)
        first.setdefault(n, served.run(x))
        for _ in range(10):
            np.testing.assert_array_equal(served.run(x), first[n])
        for place in {0, n // 2, n - 1}:
            others = sample_rows(n, served.shape, seed=2 + place)
            others[place] = x[0]
            np.testing.assert_array_equal(served.run(others)[place], first[n][0])


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every session may take 128 MiB of the device."""
    options = session.cuda_options
    limit = {"gpu_mem_limit": str(128 * 2**20)}
    monkeypatch.setattr(session, "cuda_options", lambda cuda: options(cuda) | limit)


@pytest.mark.usefixtures("small_device")
def test_buckets_that_do_not_fit_are_given_up() -> None:
    nodes = [
        helper.make_node("Expand", ["x", "wide"], ["scratch"]),  # 2^14 × 256 bytes for every row
        helper.make_node("Tanh", ["scratch"], ["squashed"]),
        helper.make_node("ReduceMax", ["squashed", "axes"], ["y"], keepdims=1),
    ]
    shape = ("batch", 1, 8, 8)
    constants = {"wide": np.array([1, 2**14, 1, 1]), "axes": np.array([1])}
    data = serialise(graph(nodes, constants, shape, shape), make_card())
    model = on_cuda(data)  # 4 MiB a row: 64 rows do not fit, one does
    assert model.buckets is not None
    assert 1 <= model.buckets[-1] < 64
    rows = sample_rows(model.buckets[-1])
    np.testing.assert_allclose(model.run(rows), np.tanh(rows), atol=1e-5)


@pytest.mark.usefixtures("small_device")
def test_what_never_fits_says_so_and_leaves_the_device_usable() -> None:
    model = OnnxModel(hungry(2**28), device="cuda")
    with pytest.raises(DeviceOutOfMemory):
        model.warm_up()
    assert model.buckets == (1,)
    model.close()
    rows = sample_rows(2)
    np.testing.assert_allclose(on_cuda(model_bytes()).run(rows), reference(rows), atol=1e-5)


@pytest.mark.slow
def test_a_long_run_keeps_its_memory() -> None:
    model = shipped(REFS[0]).instances[0]
    assert isinstance(model, OnnxModel)

    def work(rounds: int) -> None:
        for round_ in range(rounds):
            for n in (1, 3, 7, 20, 64):
                x = sample_rows(n, model.shape, seed=round_ % 5)
                for _ in range(10):
                    model.run(x)

    work(20)
    before = gpu()
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work(100)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host < 64 * 1024  # KiB
    if before:  # there is nvidia-smi
        after, before_mib = (float(each["memory.used"].split()[0]) for each in (gpu(), before))
        assert after - before_mib < 64
    model.close()


def test_the_driver_tells_of_a_gpu() -> None:
    assert gpu_is_visible()
