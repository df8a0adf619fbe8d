"""The speed of a model by batch size: raw onnxruntime, and the runtime of this service on top of
it.

    python -m benchmarks.bench_runtime --results benchmarks/results/runtime.json

On CUDA also with rows that stay there (`make gpu`). Compare the ratios of one
run, not the figures of two runs. Without HTTP and images, this is the most the service can reach.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from benchmarks.harness.common import MODEL, Json, in_turn, rounded, run_benchmark, target
from benchmarks.harness.device import gpu
from service.artifact.card import INPUT, OUTPUT
from service.domain.latents import FloatRows
from service.environment import available_cpus, prepare_process
from service.runtime.onnx_model import OnnxModel
from service.runtime.session import CudaOptions

METHOD: Final = (
    "rows/s of repeated calls on seeded latents over `seconds` per round, the ways in turn; "
    "median, least and most of `rounds` rounds; cpu_ms_per_row is the CPU time of the whole "
    "process; ratio is service.runtime / onnxruntime by medians. On CUDA: resident copies "
    "rows in and not out"
)
Way = Callable[[FloatRows], Callable[[], object]]


def measure(options: argparse.Namespace) -> Json:
    prepare_process()
    path = Path(options.model)
    threads = available_cpus()
    data = path.read_bytes()
    largest = max(options.sizes)
    half = path.name == "model.fp16.onnx"
    cuda = CudaOptions(half=half)
    model = OnnxModel(
        data, device=options.device, cuda=cuda, threads=threads, max_batch_rows=largest
    )
    model.warm_up()
    raw = raw_session(data, model, threads)
    ways: dict[str, Way] = {
        "onnxruntime": lambda rows: partial(raw, rows),
        "service.runtime": partial(copied, model),
    }
    if model.device_batch is not None:
        ways["resident"] = partial(resident, model)
    sizes = [measure_size(size, ways, model, options) for size in options.sizes]
    return {
        "model": {"ref": model.card.ref, "digest": model.digest[:12], "shape": model.shape},
        "provider": model.provider,
        "fallback_reason": model.fallback_reason,
        "device": gpu(),
        "threads": threads,
        "targets": [target("largest size, ratio", sizes[-1]["ratio"], at_least=0.9)],
        "sizes": sizes,
    }


def raw_session(data: bytes, model: OnnxModel, threads: int) -> Callable[[FloatRows], FloatRows]:
    """A plain onnxruntime session on the provider that the model uses."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(data, options, providers=[model.provider])

    def run(rows: FloatRows) -> FloatRows:
        result: FloatRows = session.run([OUTPUT], {INPUT: rows})[0]
        return result

    return run


def copied(model: OnnxModel, rows: FloatRows) -> Callable[[], object]:
    """A call with rows copied in and out."""
    return partial(model.run, rows)


def resident(model: OnnxModel, rows: FloatRows) -> Callable[[], object]:
    """A call with rows that are copied in and stay on the device."""
    batch: Any = model.device_batch

    def step() -> None:
        batch.upload(rows)
        batch.run_steps()

    return step


def measure_size(
    size: int, ways: dict[str, Way], model: OnnxModel, options: argparse.Namespace
) -> Json:
    rows = model.noise.rows(seed=0, offset=0, n=size)
    calls = {name: way(rows) for name, way in ways.items()}
    for call in calls.values():
        call()
    timers = {name: partial(timed, call, size, options.seconds) for name, call in calls.items()}
    lines = {
        name: summary(size, samples) for name, samples in in_turn(timers, options.rounds).items()
    }
    ratio = lines["service.runtime"]["rows_per_s"] / lines["onnxruntime"]["rows_per_s"]
    return {"rows": size, **lines, "ratio": rounded(ratio)}


def timed(call: Callable[[], object], size: int, seconds: float) -> tuple[float, float]:
    """(rows/s, CPU seconds per row) of repeated calls over ``seconds``."""
    calls = 0
    cpu = time.process_time()
    start = now = time.perf_counter()
    while now - start < seconds:
        call()
        calls += 1
        now = time.perf_counter()
    return calls * size / (now - start), (time.process_time() - cpu) / (calls * size)


def summary(size: int, rounds: list[tuple[float, float]]) -> Json:
    rates, cpu = zip(*rounds, strict=True)
    middle = statistics.median(rates)
    result = {"rows_per_s": middle, "rows_per_s_least": min(rates), "rows_per_s_most": max(rates)}
    result |= {"ms_per_call": size / middle * 1e3, "cpu_ms_per_row": statistics.median(cpu) * 1e3}
    return {name: rounded(value) for name, value in result.items()}


OPTIONS: Final = {
    "model": (str(MODEL),),
    "sizes": ([1, 2, 4, 8, 16, 32, 64],),
    "seconds": (0.5, 0.05),
    "rounds": (3, 1),
    "device": ("auto",),
}

if __name__ == "__main__":
    sys.exit(run_benchmark("runtime", METHOD, measure, OPTIONS))
