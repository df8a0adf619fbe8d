"""The service with faults that only its own process can make.

    python -m benchmarks.reliability.faulty_service COMMANDS
    python -m benchmarks.reliability.faulty_service unpaced

Unpaced, clients do not wait after errors: a campaign of 200 000 would take hours. With COMMANDS,
whoever writes a line to that file makes a fault: `kill` ends the thread that runs the next batch,
`clock SECONDS` moves the wall clock.
"""

import runpy
import sys
import threading
import time
from pathlib import Path
from typing import Final

from service.domain import accounts
from service.domain.latents import FloatRows
from service.runtime.onnx_model import OnnxModel

_POLL_S: Final = 0.05


def install(commands: Path) -> None:
    """Follow the commands, in a thread."""
    kill = threading.Event()
    offset = [0.0]
    run = OnnxModel.run
    now = time.time

    def faulty_run(self: OnnxModel, rows: FloatRows) -> FloatRows:
        if kill.is_set():
            kill.clear()
            raise SystemExit  # no `Exception`, so nothing in the thread handles it
        return run(self, rows)

    def follow() -> None:
        with commands.open(encoding="utf-8") as lines:
            while True:
                word, _, value = lines.readline().partition(" ")
                if word.strip() == "kill":
                    kill.set()
                elif word == "clock":
                    offset[0] = float(value)
                else:
                    time.sleep(_POLL_S)

    OnnxModel.run = faulty_run  # type: ignore[method-assign]
    time.time = lambda: now() + offset[0]
    threading.Thread(target=follow, name="faults", daemon=True).start()


if __name__ == "__main__":
    if sys.argv[1] == "unpaced":
        accounts.ERRORS = accounts.Rate(1, 1e-9)  # type: ignore[misc]
    else:
        install(Path(sys.argv[1]))
    sys.argv = ["service"]
    runpy.run_module("service", run_name="__main__")
