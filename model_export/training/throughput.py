"""Measure how fast a run is and which phases take its time."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

COMPUTE: Final = "compute"  # forward, backward and optimiser
_MAX_SPANS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """The throughput of an interval of training."""

    steps: int  # optimiser steps
    pictures: int  # training pictures used, over all ranks
    seconds: float  # wall-clock time
    # Seconds by phase; `compute` is forward, backward and optimiser. Their sum may be less than `seconds`.
    phases: Mapping[str, float]

    @property
    def pictures_per_second(self) -> float:
        """0 for an empty interval."""
        return self.pictures / self.seconds if self.seconds else 0.0

    @property
    def outside(self) -> float:
        """Share of the time outside forward, backward and optimiser, 0 to 1."""
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
        """The form of the log: rates, and shares of the time by phase."""
        return {
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "pictures_per_second": round(self.pictures_per_second, 1),
            "outside": round(self.outside, 4),
            "phases": {name: round(seconds / self.seconds, 4) for name, seconds in self.phases.items()},
        }


class ThroughputMeter:
    """Measures the duration of phases that follow one another.

    On CUDA the host runs ahead of the device, so phases are measured with events in the device's stream. The host does
    not wait for them until the interval ends.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: list[tuple[str, torch.Event, torch.Event]] = []
        self.start()

    def start(self) -> None:
        """Start a new interval."""
        self._steps, self._pictures = 0, 0
        self._phases: Counter[str] = Counter()
        self._spans.clear()
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block for this phase. Phases must not be nested."""
        if self._device.type == "cuda":
            begin = self._event()
            yield
            self._spans.append((name, begin, self._event()))
            # Bound the number of pending events: their times are read now and then.
            if len(self._spans) >= _MAX_SPANS:
                self._read_events()
        else:
            started = time.perf_counter()
            yield
            self._phases[name] += time.perf_counter() - started  # type: ignore[assignment]  # Counter's stub knows int only

    def step(self, pictures: int) -> None:
        """Count one optimiser step."""
        self._steps += 1
        self._pictures += pictures

    def interval(self) -> Throughput:
        """End the present interval, return its throughput, and start the next one."""
        self._read_events()
        now = time.perf_counter()
        ended = Throughput(
            steps=self._steps, pictures=self._pictures, seconds=now - self._started, phases=dict(self._phases)
        )
        self.start()
        return ended

    def _event(self) -> torch.Event:
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event

    def _read_events(self) -> None:
        for name, begin, end in self._spans:
            end.synchronize()
            self._phases[name] += begin.elapsed_time(end) / 1000.0  # type: ignore[assignment]  # as above
        self._spans.clear()
