"""The speed of a model by batch size: raw onnxruntime, and the runtime of this service on top of it.

    python -m benchmarks.bench_runtime --model models/mnist/3/model.onnx --out benchmarks/results/runtime.json

Prints JSON. Every size is measured in several rounds in which both take turns, so a slower machine slows both. Compare
the ratios of one run, not the figures of two runs. Without HTTP and images, this is the most the service can reach.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.harness.common import machine, positive
from service.artifact.card import INPUT, OUTPUT
from service.domain.errors import StartupError
from service.domain.latents import FloatRows
from service.environment import available_cpus
from service.runtime.onnx_model import OnnxModel

SIZES = (1, 2, 4, 8, 16, 32, 64)
WAYS = ("onnxruntime", "service.runtime")
METHOD = (
    "rows/s of repeated calls on seeded latents over `seconds` per round; median, least and most of `rounds` "
    "rounds; cpu_ms_per_row is the CPU time of the whole process; ratio is service.runtime / onnxruntime by medians"
)


def main() -> int:
    options = parser().parse_args()
    try:
        data = Path(options.model).read_bytes()
        report = measure(data, options)
    except OSError as exc:
        return refuse(f"--model {options.model}: {exc.strerror}")
    except StartupError as exc:
        return refuse(f"--model {options.model}: {exc.detail}")
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        out = Path(options.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    return 0


def measure(data: bytes, options: argparse.Namespace) -> dict[str, Any]:
    before, threads = machine(), options.threads or available_cpus()
    model = OnnxModel(data, device=options.device, threads=threads, max_batch_rows=max(options.sizes))
    model.warm_up()
    raw = raw_session(data, model, threads)
    results = [measure_size(size, raw, model, options) for size in options.sizes]
    first = results[0]["onnxruntime"]["rows_per_s"]
    for result in results:
        result["gain_over_first_size"] = round(result["onnxruntime"]["rows_per_s"] / first, 3)
    return {
        "benchmark": "runtime",
        "method": METHOD,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "model": {"ref": model.card.ref, "digest": model.digest[:12], "shape": model.shape},
        "provider": model.provider,
        "fallback_reason": model.fallback_reason,
        "threads": threads,
        "machine": before,
        "sizes": results,
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


def measure_size(
    size: int, raw: Callable[[FloatRows], FloatRows], model: OnnxModel, options: argparse.Namespace
) -> dict[str, Any]:
    rows = model.noise.rows(seed=0, offset=0, n=size)
    out = np.empty_like(rows)
    ways: dict[str, Callable[[], object]] = dict(
        zip(WAYS, (lambda: raw(rows), lambda: model.run(rows, out)), strict=True)
    )
    rounds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for call in ways.values():
        call()
    for _ in range(options.rounds):
        for way, call in ways.items():
            rounds[way].append(timed(call, size, options.seconds))
    result: dict[str, Any] = {"rows": size} | {way: summary(size, samples) for way, samples in rounds.items()}
    result["ratio"] = round(result[WAYS[1]]["rows_per_s"] / result[WAYS[0]]["rows_per_s"], 3)
    return result


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


def summary(size: int, rounds: list[tuple[float, float]]) -> dict[str, float]:
    rates = [rate for rate, _ in rounds]
    median = statistics.median(rates)
    return {
        "rows_per_s": round(median, 1),
        "rows_per_s_least": round(min(rates), 1),
        "rows_per_s_most": round(max(rates), 1),
        "ms_per_call": round(size / median * 1e3, 4),
        "cpu_ms_per_row": round(statistics.median(cpu for _, cpu in rounds) * 1e3, 4),
    }


def refuse(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(description="Measure an exported model by batch size.")
    cli.add_argument("--model", default="models/mnist/3/model.onnx", help="an exported model.onnx")
    cli.add_argument("--sizes", type=positive, nargs="+", default=SIZES, help="batch sizes")
    cli.add_argument("--seconds", type=float, default=0.5, help="length of a round (default 0.5)")
    cli.add_argument("--rounds", type=positive, default=3, help="rounds per size and way (default 3)")
    cli.add_argument("--threads", type=int, default=0, help="CPU threads (default: what the process is granted)")
    cli.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    cli.add_argument("--out", help="also write the JSON into this file")
    return cli


if __name__ == "__main__":
    sys.exit(main())
