import time
from pathlib import Path

import pytest
import torch

from model_export.training.log import Log, Throughput, ThroughputMeter


def test_what_lies_past_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    kept = '{"step": 4, "stage": "imle", "rec": 0.5}\n'
    path.write_text(kept + '{"step": 5, "stage": "imle"}\n[1]\n{"step": null}\n{"ste')
    with Log(path, 4):
        pass
    assert path.read_text() == kept


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
    assert interval == Throughput(
        steps=2, pictures=128, seconds=16.0, phases={"data": 2.0, "compute": 12.0}
    )
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
