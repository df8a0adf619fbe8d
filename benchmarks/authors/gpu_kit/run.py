"""Test and measure on the GPU of this machine, stage by stage: `make gpu`, and what `kit.py` calls.

After a stage that fails the next ones still run, unless it is the first row. `gpu.json` and
`gpu.log` grow with every stage, so what is done stays when the rest is cut off. The exit status is
1 unless all stages pass.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from benchmarks.harness.common import Json, machine, rounded
from benchmarks.harness.device import gpu
from benchmarks.harness.processes import ROOT, process_tree
from benchmarks.harness.tables import is_table

FIRST: Final = "first-row"
MEASURE: Final = "--device {device} --results {results}/{name}.json {quick}"
RUNTIME: Final = f"{{python}} -u -m benchmarks.bench_runtime {MEASURE}"
LOAD: Final = f"{{python}} -u -m benchmarks.authors.gpu_kit.load {MEASURE} --processes"
STAGES: Final = {
    "driver": (30, "env nvidia-smi"),
    FIRST: (180, "{python} -u -m service --check --device {device}"),
    "tests": (480, "{python} -u -m pytest -v -m gpu --durations=10 tests/gpu"),
    "runtime-quick": (120, f"{RUNTIME} --quick"),
    "runtime": (360, RUNTIME),
    "service-1": (180, f"{LOAD} 1"),
    "service-4": (240, f"{LOAD} 4"),
    "service-8": (300, f"{LOAD} 8"),
}
"""Name → the most seconds that it may take, and its command, which may write a result to
`NAME.json`.
"""


def run(stages: Mapping[str, tuple[float, str]], results: Path, **words: str) -> int:
    """Run stages one after the other, with ``words`` put into their commands; returns the exit
    status.
    """
    results.mkdir(parents=True, exist_ok=True)
    head = {"benchmark": "gpu", "machine": machine(), "device": gpu()}
    lines = list[Json]()
    for name, (limit_s, command) in stages.items():
        (results / f"{name}.json").unlink(missing_ok=True)
        lines.append({"stage": name, "outcome": "cut off", "seconds": None, "limit_s": limit_s})
        write(head, lines, results)
        begin = time.monotonic()
        parts = (part.format(name=name, results=results, **words) for part in command.split())
        outcome = ended([part for part in parts if part], limit_s, results / "gpu.log")
        lines[-1] |= {"outcome": outcome, "seconds": rounded(time.monotonic() - begin)}
        write(head, lines, results)
        print(f"{name}: {outcome} in {lines[-1]['seconds']} s", flush=True)
        if outcome != "passed":
            print(
                (results / "gpu.log").read_text(encoding="utf-8", errors="replace")[-2000:],
                flush=True,
            )
            if name == FIRST:
                break
    return int(any(line["outcome"] != "passed" for line in lines))


def ended(command: Sequence[str], limit_s: float, log: Path) -> str:
    """Run a command, with its output at the end of ``log``; how it ended. None of its processes is
    left.
    """
    with log.open("a", encoding="utf-8") as output:
        print("\n==", *command, file=output, flush=True)
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        return f"status {status}" if (status := process.wait(limit_s)) else "passed"
    except subprocess.TimeoutExpired:
        return "over its limit"
    finally:
        for pid in process_tree(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def write(head: Json, lines: Sequence[Json], results: Path) -> None:
    """Write `gpu.json`: the machine, the stages so far, and the targets and tables that they
    wrote.
    """
    summary: Json = head | {"targets": [], "stages": lines}
    for name in (line["stage"] for line in lines):
        with suppress(OSError, ValueError):  # it wrote none, or was ended meanwhile
            result = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
            summary["device"] |= result.get("device", {})
            summary["targets"] += [
                line | {"what": f"{name}: {line['what']}"} for line in result["targets"]
            ]
            summary[name] = next(
                value for key, value in result.items() if key != "targets" and is_table(value)
            )
    partial = results / "gpu.json.partial"
    partial.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(results / "gpu.json")


def main() -> int:
    cli = argparse.ArgumentParser(description="Test and measure on the GPU of this machine.")
    cli.add_argument(
        "stages", nargs="*", choices=["all", *STAGES], default="all", help="(default all)"
    )
    cli.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses without a GPU"
    )
    cli.add_argument(
        "--quick", action="store_true", help="measure a few seconds each, to check that it works"
    )
    cli.add_argument(
        "--results", type=Path, default=Path("runs/gpu"), help="folder (default %(default)s)"
    )
    asked = cli.parse_args()
    wanted = STAGES if "all" in asked.stages else (FIRST, *asked.stages)
    chosen = {name: stage for name, stage in STAGES.items() if name in wanted}
    quick = "--quick" * asked.quick
    return run(
        chosen, asked.results.resolve(), python=sys.executable, device=asked.device, quick=quick
    )


if __name__ == "__main__":
    sys.exit(main())
