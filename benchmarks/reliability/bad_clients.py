"""Clients that are slow, vanish, send too much, or send what is wrong.

    python -m benchmarks.reliability.bad_clients PORT CLIENTS SECONDS SEED

A process of their own, so that they cannot delay good clients.
"""

import asyncio
import contextlib
import sys
import time
from typing import Final

import numpy as np
import uvloop

from benchmarks.load_generator.fetch import ConnectionClosed, fetch
from benchmarks.load_generator.traffic import Rng, disconnecting, oversized, slow_body
from benchmarks.reliability.hostile_inputs import hostile

PAUSE_S: Final = 0.5
LEAVE_AFTER_S: Final = 1.0
_MAKERS: Final = (slow_body, disconnecting, oversized)


async def bad_client(port: int, rng: Rng, kind: int, end: float) -> None:
    """Send bad requests until a `time.monotonic`, whatever the responses are."""
    while time.monotonic() < end:
        leave_after_s = LEAVE_AFTER_S
        if kind < len(_MAKERS):
            case = _MAKERS[kind](rng)
            data, leave_after_s = case.data, case.leave_after_s or leave_after_s
        else:
            data = hostile(rng).data
        with contextlib.suppress(OSError, ConnectionClosed, TimeoutError):
            await fetch(port, data, leave_after_s=leave_after_s)
        await asyncio.sleep(PAUSE_S)


def main(port: str, clients: str, seconds: str, seed: str) -> None:
    end = time.monotonic() + float(seconds)
    rngs = np.random.default_rng(int(seed)).spawn(int(clients))

    async def run() -> None:
        makers = len(_MAKERS) + 1
        await asyncio.gather(*(bad_client(int(port), rng, i % makers, end) for i, rng in enumerate(rngs)))

    uvloop.run(run())


if __name__ == "__main__":
    main(*sys.argv[1:])
