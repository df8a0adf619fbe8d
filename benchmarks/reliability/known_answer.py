"""A good client that knows the bytes of the right answer, and records what it gets."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.load_generator.fetch import fetch
from benchmarks.load_generator.messages import post
from benchmarks.load_generator.traffic import REJECTIONS

KNOWN = post("/generate", {"seed": 1, "steps": 1}, "image/png")


async def right_answer(port: int) -> bytes:
    """The body that `KNOWN` gets.

    Raises:
        RuntimeError: the service does not answer with 200.
    """
    answer = await fetch(port, KNOWN)
    if answer.status != 200:
        raise RuntimeError(f"the known request was answered with {answer.status}")
    return answer.body


@dataclass(slots=True)
class KnownAnswers:
    """What good clients got; ``right`` is the body that each 200 must have."""

    right: bytes
    seconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)  # ok, wrong, rejected, a status, or the error
    failures: list[tuple[str, float, float]] = field(default_factory=list)
    """All other outcomes than ok, with the times of sending and of the outcome in `time.monotonic`."""

    async def ask(self, port: int) -> str:
        """Send the known request once on a new connection; returns the outcome."""
        start = time.monotonic()
        try:
            answer = await fetch(port, KNOWN)
        except OSError as exc:
            outcome = type(exc).__name__
        else:
            outcome = str(answer.status)
            if answer.status == 200:
                outcome = "ok" if answer.body == self.right else "wrong"
            elif answer.status in REJECTIONS and "retry-after" in answer.headers:
                outcome = "rejected"
        if outcome == "ok":
            self.seconds.append(time.monotonic() - start)
        else:
            self.failures.append((outcome, start, time.monotonic()))
        self.outcomes[outcome] += 1
        return outcome

    async def work(self, port: int, until: float, pause_s: float = 0.0) -> None:
        """Ask again and again until a `time.monotonic`."""
        while time.monotonic() < until:
            if await self.ask(port) != "ok":
                await asyncio.sleep(0.1)
            await asyncio.sleep(pause_s)
