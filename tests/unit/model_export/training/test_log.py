import json
import time
from pathlib import Path

import pytest
import torch

from model_export.training import log
from model_export.training.log import Log, Throughput, ThroughputMeter

MEASURED = Throughput(steps=4, pictures=64, seconds=2.0, phases={"compute": 1.5})


def test_what_lies_past_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    kept = '{"step": 4, "stage": "imle", "rec": 0.5}\n'
    path.write_text(kept + '{"step": 5, "stage": "imle"}\n[1]\n{"step": null}\n{"ste')
    with Log(path, 4):
        pass
    assert path.read_text() == kept


def test_a_line_has_the_terms_of_a_step_or_the_throughput_that_ends_there(tmp_path: Path) -> None:
    with Log(tmp_path / "log.jsonl", 3) as written:
        written.terms(4, "imle", {"rec": 0.5, "imle": 0.25})
        written.throughput(4, "imle", MEASURED)
    losses, throughput = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert losses == {"step": 4, "stage": "imle", "rec": 0.5, "imle": 0.25}
    assert throughput == {"step": 4, "stage": "imle", "throughput": MEASURED.to_dict()}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the meter on the wall says."""
    times = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: times[0])
    return times


def test_phases_and_steps_are_counted_by_interval(now: list[float]) -> None:
    meter = ThroughputMeter(torch.device("cpu"))
    for _ in range(2):
        with meter.phase("data"):
            now[0] += 1.0
        with meter.phase("compute"):
            now[0] += 6.0
        now[0] += 1.0
        meter.step(64)
    interval = meter.interval()
    assert interval == Throughput(steps=2, pictures=128, seconds=16.0, phases={"data": 2.0, "compute": 12.0})
    assert (interval.pictures_per_second, interval.outside) == (8.0, 0.25)
    assert interval.to_dict() == {
        "steps": 2,
        "seconds": 16.0,
        "pictures_per_second": 8.0,
        "outside": 0.25,
        "phases": {"data": 0.125, "compute": 0.75},
    }
    now[0] += 3.0
    assert meter.interval() == Throughput(steps=0, pictures=0, seconds=3.0, phases={})


def test_intervals_add_up_and_the_largest_share_comes_first() -> None:
    a = Throughput(steps=1, pictures=10, seconds=2.0, phases={"compute": 1.0, "pool": 0.5})
    b = Throughput(steps=2, pictures=20, seconds=4.0, phases={"compute": 3.0, "pairs": 0.25})
    both = Throughput(steps=3, pictures=30, seconds=6.0, phases={"compute": 4.0, "pool": 0.5, "pairs": 0.25})
    assert a + b == both
    assert both.outside == pytest.approx(1 / 3)
    text = str(both)
    assert text.index("pool 8.3%") < text.index("pairs 4.2%")
    assert "5 pictures/s" in text
    nothing = Throughput(steps=0, pictures=0, seconds=0.0, phases={})
    assert (nothing.pictures_per_second, nothing.outside) == (0.0, 0.0)


def test_on_cuda_the_device_keeps_the_time(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    class Event:
        """On a device that is half a second behind the host."""

        def __init__(self, device: torch.device, *, enable_timing: bool) -> None:
            assert (device.type, enable_timing) == ("cuda", True)

        def record(self) -> None:
            self.at = now[0] + 0.5

        def synchronize(self) -> None:
            waited.append(self.at)

        def elapsed_time(self, end: "Event") -> float:
            return 1000.0 * (end.at - self.at)

    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(log, "_MAX_SPANS", 3)
    meter = ThroughputMeter(torch.device("cuda"))
    for _ in range(4):
        with meter.phase("compute"):
            now[0] += 2.0
    assert len(waited) == 3  # not with every span, nor only when a million of them are held
    assert meter.interval().phases == {"compute": pytest.approx(8.0)}
    assert len(waited) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_device_keeps_the_time() -> None:
    device = torch.device("cuda")
    a = torch.rand((4096, 4096), device=device)
    meter = ThroughputMeter(device)
    with meter.phase("compute"):
        for _ in range(20):
            a = torch.tanh(a @ a)
    interval = meter.interval()
    assert 0 < interval.phases["compute"] <= interval.seconds
