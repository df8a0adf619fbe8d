"""Where the time of a run goes."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

COMPUTE: Final = "compute"  # forward, backward and optimiser
_MOST_SPANS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """How fast a stretch of training was.

    Args:
        steps: optimiser steps.
        pictures: pictures of the data set gone through, all ranks together.
        seconds: wall-clock time.
        phases: seconds by phase; `compute` is forward, backward and optimiser. What no phase claims is the loop's.
    """

    steps: int
    pictures: int
    seconds: float
    phases: Mapping[str, float]

    @property
    def pictures_per_second(self) -> float:
        """0 where nothing was done."""
        return self.pictures / self.seconds if self.seconds else 0.0

    @property
    def outside(self) -> float:
        """Share of the time outside forward, backward and optimiser, 0…1."""
        return max(0.0, 1.0 - self.phases.get(COMPUTE, 0.0) / self.seconds) if self.seconds else 0.0

    def __add__(self, other: "Throughput") -> "Throughput":
        return Throughput(
            steps=self.steps + other.steps,
            pictures=self.pictures + other.pictures,
            seconds=self.seconds + other.seconds,
            phases=Counter(self.phases) + Counter(other.phases),
        )

    def __str__(self) -> str:
        shares = sorted(((s / self.seconds, name) for name, s in self.phases.items() if name != COMPUTE), reverse=True)
        parts = ", ".join(f"{name} {share:.1%}" for share, name in shares)
        return (
            f"{self.steps} steps, {self.pictures_per_second:.0f} pictures/s, "
            f"{self.outside:.1%} of the time outside forward, backward and optimiser ({parts})"
        )

    def to_dict(self) -> dict[str, Any]:
        """For the log: rates and shares."""
        return {
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "pictures_per_second": round(self.pictures_per_second, 1),
            "outside": round(self.outside, 4),
            "phases": {name: round(seconds / self.seconds, 4) for name, seconds in self.phases.items()},
        }


class Clock:
    """Times phases that follow each other.

    On CUDA by events on the device's own time line, since the host runs ahead of it; nothing waits for a measurement.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: list[tuple[str, torch.Event, torch.Event]] = []
        self.start()

    def start(self) -> None:
        """Begin a new stretch."""
        self._steps, self._pictures = 0, 0
        self._phases: Counter[str] = Counter()
        self._spans.clear()
        self._began = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What runs inside counts for this phase; phases do not nest."""
        if self._device.type == "cuda":
            begin = self._event()
            yield
            self._spans.append((name, begin, self._event()))
            if len(self._spans) >= _MOST_SPANS:
                self._settle()
        else:
            began = time.perf_counter()
            yield
            self._phases[name] += time.perf_counter() - began  # type: ignore[assignment]  # Counter's stub knows int only

    def step(self, pictures: int) -> None:
        """Count one optimiser step."""
        self._steps += 1
        self._pictures += pictures

    def lap(self) -> Throughput:
        """The stretch since the start or the last lap, which ends here."""
        self._settle()
        now = time.perf_counter()
        lap = Throughput(
            steps=self._steps, pictures=self._pictures, seconds=now - self._began, phases=dict(self._phases)
        )
        self.start()
        return lap

    def _event(self) -> torch.Event:
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event

    def _settle(self) -> None:
        for name, begin, end in self._spans:
            end.synchronize()
            self._phases[name] += begin.elapsed_time(end) / 1000.0  # type: ignore[assignment]  # as above
        self._spans.clear()
