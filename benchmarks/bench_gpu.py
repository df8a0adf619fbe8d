"""The CUDA path on a GPU: parity, batch invariance, CUDA graphs, resident rows, batch sizes and memory.

    python -m benchmarks.bench_gpu --results benchmarks/results/gpu.json

Without HTTP and images. Every figure is compared with raw onnxruntime on the same model and device in the same run, and
with the highest rate of the device at any batch size. Without working CUDA it prints one line and measures nothing. A
full run takes about five minutes, `--quick` some seconds.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from benchmarks.bench_runtime import raw_session, timed
from benchmarks.harness.common import (
    Json,
    apply_defaults,
    arguments,
    duration,
    in_turn,
    median_ratio,
    memory,
    percentile,
    positive,
    report,
    rounded,
    save,
    target,
    write,
)
from benchmarks.harness.device import Device
from benchmarks.harness.processes import ROOT, rss_mib
from service.artifact.golden import check_golden, read_golden
from service.domain.errors import ModelFailure, StartupError
from service.domain.latents import FloatRows
from service.domain.model import DeviceOutOfMemory
from service.environment import prepare_process
from service.runtime import onnx_model
from service.runtime import session as sessions
from service.runtime.onnx_model import OnnxModel
from service.runtime.session import CudaOptions, CudaUnavailable

METHOD = (
    "One process, one thread. parity: golden rows in every bucket and at every place. invariance: one row at every "
    "place of a batch with other neighbours each time. sizes: rows/s of repeated calls on seeded latents, the ways "
    "in turn; run is service.runtime with rows copied in and out, resident leaves the rows on the device, graphs "
    "replays CUDA graphs; raw is a plain session.run; limit is the highest rate of resident calls at any batch "
    "size, also beyond the buckets. changes: the smallest and the largest batch alternating, over each of them "
    "alone: onnxruntime plans the convolutions again whenever the batch size changes, unless it replays a graph. "
    "options: provider settings that the service does not use, over the ones it uses, at the largest bucket with "
    "resident rows. memory: all buckets in turn, with graphs"
)
FULL = {"rounds": 3, "seconds": 0.4, "soak_s": 40.0, "most": 1024}
QUICK = {"rounds": 1, "seconds": 0.1, "soak_s": 3.0, "most": 128}
WAYS: Final = ("raw", "run", "resident", "graphs_run", "graphs_resident")
UNUSED: Final[Mapping[str, Mapping[str, str]]] = {
    "prefer_nhwc": {"prefer_nhwc": "1"},
    "fuse_conv_bias": {"fuse_conv_bias": "1"},
    "heuristic search": {"cudnn_conv_algo_search": "HEURISTIC"},
}
"""Provider options that may help and are not used. TF32 is not one of them: it is set for the whole process."""


def main() -> int:
    options = apply_defaults(parser().parse_args(), full=FULL, quick=QUICK)
    prepare_process()
    try:
        write(measure(options), options.results)
    except CudaUnavailable as exc:
        print(f"skipped: {exc.detail}", file=sys.stderr)
    except (StartupError, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


def measure(options: argparse.Namespace) -> Json:
    device = Device()
    measured: dict[str, list[Json]] = {}
    for file in options.model:
        for part, lines in measure_model(Path(file), device, options).items():
            measured.setdefault(part, []).extend(lines)
        judged = (measured[part] for part in ("parity", "invariance", "sizes", "changes", "memory"))
        so_far = report("gpu", METHOD, options, device=device.about(), targets=targets(*judged), **measured)
        if options.results:  # the result of this file stays if the next one is interrupted
            save(so_far, options.results)
    return so_far


def measure_model(path: Path, device: Device, options: argparse.Namespace) -> dict[str, list[Json]]:
    """All measurements of one file, by table."""
    data, half = path.read_bytes(), path.name == "model.fp16.onnx"
    with (
        open_cuda_model(data, CudaOptions(half=half)) as plain,
        open_cuda_model(data, CudaOptions(half=half, graphs=True)) as graphs,
    ):
        limit = peak_rate(data, half, options)
        measured = {
            "parity": [golden_rows(path, plain)],
            "invariance": batch_invariance(plain),
            "sizes": [rates_by_size(size, data, plain, graphs, limit, options) for size in plain.buckets or ()],
            "limits": [limit],
            "changes": [alternating(plain, graphs, options)],
            "memory": [long_run(graphs, device, options)],
        }
    measured["options_not_used"] = other_options(data, half, options)
    for line in itertools.chain.from_iterable(measured.values()) if half else ():
        line["model"] += " in float16"
    return measured


def targets(
    parity: Sequence[Json],
    invariance: Sequence[Json],
    sizes: Sequence[Json],
    changes: Sequence[Json],
    soaks: Sequence[Json],
) -> list[Json]:
    """One target per promise, with the worst value over all models."""
    top = {line["model"]: line for line in sizes}.values()  # the last of each is its largest bucket
    return [
        target("golden rows: difference over tolerance", max(line["of_tolerance"] for line in parity), at_most=1.0),
        target(
            "a row among others: largest difference of its bits", max(line["spread"] for line in invariance), at_most=0
        ),
        target("largest bucket, run over raw onnxruntime", min(line["run_over_raw"] for line in top), at_least=0.9),
        target(
            "largest bucket, resident, share of the device's limit", min(line["of_limit"] for line in top), at_least=0.9
        ),
        target(
            "one row, graphs over none", min(line["graph_gain"] for line in sizes if line["rows"] == 1), at_least=1.0
        ),
        target(
            "batch sizes in turn, with graphs, over one at a time",
            max(line["graphs_in_turn_over_alone"] for line in changes),
            at_most=1.2,
        ),
        target("long run: growth of memory", max(line["growth_mib"] for line in soaks), at_most=64, unit="MiB"),
    ]


@contextmanager
def open_cuda_model(data: bytes, cuda: CudaOptions) -> Iterator[OnnxModel]:
    """A warm model on CUDA."""
    model = OnnxModel(data, device="cuda", cuda=cuda)
    try:
        model.warm_up()
        yield model
    finally:
        model.close()


def golden_rows(path: Path, model: OnnxModel) -> Json:
    golden = read_golden(path.parent / "golden.npz", model.shape)
    allowed = model.card.tolerance.fp16 if path.name == "model.fp16.onnx" else model.card.tolerance.fp32
    measured = check_golden(model, golden, allowed)
    return {
        "model": model.card.ref,
        "file": path.name,
        "difference": measured.difference,
        "tolerance": measured.tolerance,
        "of_tolerance": rounded(measured.difference / measured.tolerance),
        "spread_between_buckets": measured.spread,
    }


def batch_invariance(model: OnnxModel) -> list[Json]:
    """How much the neighbours of a row change its output, by bucket.

    ``spread`` is the largest difference of one row between all places of the batch, with other neighbours each time.
    ``again`` is the largest difference between two runs of one batch: what varies without any change.
    """
    lines = []
    for size in model.buckets or ():
        x = model.noise.rows(seed=0, offset=0, n=1)[0]
        answers = []
        for place in range(size):
            rows = model.noise.rows(seed=1 + place, offset=0, n=size)
            rows[place] = x
            answers.append(model.run(rows)[place])
        spread = max(float(np.abs(answer - answers[0]).max()) for answer in answers)
        again = max(float(np.abs(model.run(rows) - model.run(rows)).max()) for _ in range(3))
        lines.append({"model": model.card.ref, "bucket": size, "places": size, "spread": spread, "again": again})
    return lines


def peak_rate(data: bytes, half: bool, options: argparse.Namespace) -> Json:
    """The highest rows/s at any batch size up to ``most``: the size doubles as long as that helps."""
    rates: dict[int, float] = {}
    size = 16
    while size <= options.most:
        with (
            patch.object(onnx_model, "bounded_buckets", return_value=(size,)),
            open_cuda_model(data, CudaOptions(half=half)) as model,
        ):
            ref = model.card.ref
            if model.buckets != (size,):  # it does not fit into the device memory
                break
            measured = sorted(resident_rate(model, size, options.seconds) for _ in range(options.rounds))
            rates[size] = percentile(measured, 50)
        if size > 64 and rates[size] < 1.02 * rates[size // 2]:
            break
        size *= 2
    best = max(rates, key=lambda rows: rates[rows])
    return {"model": ref, "rows_per_s": rounded(rates[best]), "at_rows": best, "tried_up_to": max(rates)}


def rates_by_size(
    size: int, data: bytes, plain: OnnxModel, graphs: OnnxModel, limit: Json, options: argparse.Namespace
) -> Json:
    x = plain.noise.rows(seed=0, offset=0, n=size)
    out = np.empty_like(x)
    raw = raw_session(data, plain, 1)
    raw(x)
    calls: dict[str, Callable[[], float]] = {
        "raw": lambda: rate(lambda: raw(x), size, options.seconds),
        "run": lambda: rate(lambda: plain.run(x, out), size, options.seconds),
        "resident": lambda: resident_rate(plain, size, options.seconds),
        "graphs_run": lambda: rate(lambda: graphs.run(x, out), size, options.seconds),
        "graphs_resident": lambda: resident_rate(graphs, size, options.seconds),
    }
    measured = in_turn(calls, options.rounds)
    line: Json = {"model": plain.card.ref, "rows": size}
    for way in WAYS:
        line[f"{way}_rows_per_s"] = rounded(percentile(sorted(measured[way]), 50))
    line["run_over_raw"] = rounded(median_ratio(measured["run"], measured["raw"]))
    line["resident_over_raw"] = rounded(median_ratio(measured["resident"], measured["raw"]))
    line["graph_gain"] = rounded(median_ratio(measured["graphs_run"], measured["run"]))
    line["graph_gain_resident"] = rounded(median_ratio(measured["graphs_resident"], measured["resident"]))
    line["of_limit"] = rounded(line["resident_rows_per_s"] / limit["rows_per_s"])
    return line


def rate(call: Callable[[], object], size: int, seconds: float) -> float:
    """Rows/s."""
    return timed(call, size, seconds)[0]


def resident_rate(model: OnnxModel, size: int, seconds: float) -> float:
    """Rows/s of steps with the rows staying on the device."""
    batch = model.device_batch
    assert batch is not None
    batch.upload(model.noise.rows(seed=0, offset=0, n=size))
    steps, start = 0, time.perf_counter()
    now = start

    def more() -> bool:
        nonlocal steps, now
        steps, now = steps + 1, time.perf_counter()
        return now - start < seconds

    batch.run_steps(more)
    return steps * size / (now - start)


def alternating(plain: OnnxModel, graphs: OnnxModel, options: argparse.Namespace) -> Json:
    """The cost of a changing batch size: smallest and largest bucket alternating, over each alone."""
    buckets = plain.buckets or (1,)
    small, large = (plain.noise.rows(seed=0, offset=0, n=size) for size in (buckets[0], buckets[-1]))
    line: Json = {"model": plain.card.ref, "rows": f"{buckets[0]} and {buckets[-1]}"}
    for way, model in {"run": plain, "graphs": graphs}.items():

        def both(model: OnnxModel = model) -> None:
            model.run(small)
            model.run(large)

        calls: dict[str, Callable[[], float]] = {
            "small": partial(rate, partial(model.run, small), 1, options.seconds),
            "large": partial(rate, partial(model.run, large), 1, options.seconds),
            "in_turn": partial(rate, both, 1, options.seconds),
        }
        measured = in_turn(calls, options.rounds)
        alone = [1 / a + 1 / b for a, b in zip(measured["small"], measured["large"], strict=True)]
        turns = [1 / calls_per_s for calls_per_s in measured["in_turn"]]
        line[f"{way}_in_turn_over_alone"] = rounded(median_ratio(turns, alone))
        line[f"{way}_ms_per_change"] = rounded(
            percentile(sorted(a - b for a, b in zip(turns, alone, strict=True)), 50) / 2 * 1e3
        )
    return line


def other_options(data: bytes, half: bool, options: argparse.Namespace) -> list[Json]:
    """The gain of unused provider options, and how much they change the rows."""
    lines = []
    with open_cuda_model(data, CudaOptions(half=half)) as usual:
        size = (usual.buckets or (1,))[-1]
        x = usual.noise.rows(seed=0, offset=0, n=size)
        expected = usual.run(x)
        for name, changes in UNUSED.items():
            line: Json = {"model": usual.card.ref, "option": name, "gain": None, "difference": None, "refused": ""}
            lines.append(line)
            try:
                with provider_options(changes), open_cuda_model(data, CudaOptions(half=half)) as other:
                    measured = in_turn(
                        {
                            "usual": partial(resident_rate, usual, size, options.seconds),
                            "other": partial(resident_rate, other, size, options.seconds),
                        },
                        options.rounds,
                    )
                    line["gain"] = rounded(median_ratio(measured["other"], measured["usual"]))
                    line["difference"] = rounded(float(np.abs(other.run(x) - expected).max()))
            except (StartupError, ModelFailure, DeviceOutOfMemory) as exc:  # only this option fails, and nobody uses it
                line["refused"] = str(exc)
    return lines


@contextmanager
def provider_options(changes: Mapping[str, str]) -> Iterator[None]:
    usual = sessions.cuda_options
    with patch.object(sessions, "cuda_options", lambda cuda: {**usual(cuda), **changes}):
        yield


def long_run(model: OnnxModel, device: Device, options: argparse.Namespace) -> Json:
    """Host and device memory while all buckets run, with copied and with resident rows in turn."""
    host: list[tuple[float, float]] = []
    on_device: list[tuple[float, float]] = []
    buckets = model.buckets or ()
    sizes = sorted({*buckets, *(max(1, bucket - 1) for bucket in buckets)})  # padded and not
    rows: dict[int, FloatRows] = {n: model.noise.rows(seed=0, offset=0, n=n) for n in sizes}
    start = now = time.monotonic()
    next_look, steps = start, 0
    for n in itertools.cycle(rows):
        model.run(rows[n])
        steps += 1 + run_resident(model, rows[n])
        now = time.monotonic()
        if now >= next_look:
            next_look = now + options.soak_s / 60
            host.append((now - start, rss_mib(os.getpid())))
            if (used := device.used_mib()) is not None:
                on_device.append((now - start, used))
        if now - start >= options.soak_s and len(host) > 2:
            break
    measured: dict[str, Any] = {"host": memory(host)} | ({"device": memory(on_device)} if on_device else {})
    return {
        "model": model.card.ref,
        "seconds": rounded(now - start),
        "steps": steps,
        "growth_mib": max(part["growth_mib"] for part in measured.values()),
        **measured,
    }


def run_resident(model: OnnxModel, rows: FloatRows) -> int:
    """Run some steps with resident rows; returns how many."""
    batch = model.device_batch
    assert batch is not None
    batch.upload(rows)
    for _ in range(20):
        batch.run_steps()
    batch.download(rows)
    return 20


def parser() -> argparse.ArgumentParser:
    cli = arguments("Measure the CUDA path.")
    cli.add_argument(
        "--model",
        nargs="+",
        default=[str(ROOT / "models" / "mnist" / "3" / name) for name in ("model.onnx", "model.fp16.onnx")],
        help="exported files, golden.npz beside them, such as one of 28×28 and one of 64×64 (default: mnist/3, both)",
    )
    cli.add_argument("--rounds", type=positive, help="rounds (default 3; quick 1)")
    cli.add_argument("--seconds", type=duration, help="seconds per measurement and round (default 0.4; quick 0.1)")
    cli.add_argument("--soak-s", type=duration, help="seconds of the long run (default 40; quick 3)")
    cli.add_argument("--most", type=positive, help="largest batch tried for the limit (default 1024; quick 128)")
    return cli


if __name__ == "__main__":
    sys.exit(main())
