"""A load generator with low and reported CPU cost: keep-alive connections, prepared bytes, the httptools parser.

    python -m benchmarks.load_generator.load SPEC.json        # or - for stdin; prints a report

The file holds the fields of `Spec`; requests are whole HTTP/1.1 requests, in base64. `measure` runs the generator in a
process of its own, so that it does not compete with the caller for the GIL.

- Closed loop: every connection sends its next request after the answer. Latency counts from sending.
- Open loop (`rate`): requests are due at random times (Poisson), independent of the answers. Latency counts from the
  time a request was **due**, so a stall delays every request that was due meanwhile. A request without a free
  connection waits, and its wait counts. Timers have a resolution of a millisecond; `lateness` is the delay between due
  and sent, and is part of the latencies.
"""

import asyncio
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import uvloop

from benchmarks.harness.common import Json
from benchmarks.harness.processes import ROOT
from benchmarks.load_generator.connections import Load
from benchmarks.load_generator.spec import Spec, request

__all__ = ["Spec", "measure", "request", "run"]


def measure(spec: Spec) -> Json:
    """Run the load in a process of its own; returns its report.

    Raises:
        RuntimeError: the generator failed; the text ends with its output.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load_generator.load", "-"],
        input=spec.to_json(),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the load generator failed:\n{done.stderr[-2000:]}")
    return cast(Json, json.loads(done.stdout))


def run(spec: Spec) -> Json:
    """Run the load in this process, on an event loop of its own; returns the report."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Load(spec).run())


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m benchmarks.load_generator.load SPEC.json (or -)", file=sys.stderr)
        return 2
    try:
        text = sys.stdin.read() if argv[0] == "-" else Path(argv[0]).read_text(encoding="utf-8")
        spec = Spec.from_json(text)
    except (OSError, ValueError, TypeError, KeyError) as exc:
        print(f"error: {argv[0]}: {exc}", file=sys.stderr)
        return 2
    gc.disable()  # its pauses would count as latency
    print(json.dumps(run(spec), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
