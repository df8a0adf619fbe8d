import asyncio
import errno
import os
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service.domain.errors import NotReady
from service.observability.logs import TraceContext
from service.observability.metrics import (
    MAX_CALLERS,
    MAX_MODELS,
    MAX_VALUES,
    OTHER,
    Metrics,
)
from service.observability.shared import SharedFiles
from service.observability.statistics import ModelStatistics
from service.scheduling.report import Finished, ModelCall, Report

OPENMETRICS = (
    "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.2"
)
"""The beginning of what Prometheus sends as Accept."""


def ended(**values: Any) -> Any:
    """A request that has ended, with what metrics read of it."""
    return SimpleNamespace(
        **{"model": None, "api_key": None, "problem": None, "trace": None} | values
    )


def result(*steps: int) -> Any:
    """A result with what metrics read of it."""
    values = np.full(len(steps), 0.25)
    return SimpleNamespace(steps=np.array(steps), distance=values, drift=values)


def samples(metrics: Metrics) -> dict[str, float]:
    """Every line of the text, such as `ign_batches_total{model="toy/1",reason="full"}`, and its
    value.
    """
    lines = [line for line in metrics.render()[0].decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_the_number_of_label_values_is_limited() -> None:
    metrics = Metrics()
    statistics = ModelStatistics(metrics, "toy/1")
    for i in range(MAX_MODELS + 2):
        request = ended(model=f"m{i}/1", problem=f"e{i}", api_key=f"k{i}")
        metrics.requests(f"/{i}", 200, [(0.1, request)])
        metrics.rows(f"m{i}/1", f"/{i}", [result(1)])
        statistics.take(Report(rejected=[f"r{i}"]))
    metrics.add_callers([f"k{i}" for i in range(MAX_CALLERS + 2)])
    values = samples(metrics)
    names = Counter(name.partition("{")[0] for name in values)
    for name in ("ign_http_errors_total", "ign_rejected_requests_total"):
        assert names[name] <= MAX_VALUES + 1, name
    assert MAX_VALUES + 1 < names["ign_distance_sum"] <= MAX_MODELS + 1
    assert names["ign_caller_row_steps_total"] == MAX_CALLERS + 1
    assert values[f'ign_http_errors_total{{code="{OTHER}"}}'] == MAX_MODELS + 2 - MAX_VALUES


def test_a_scheduler_reports_to_metrics_and_statistics() -> None:
    """tests/contract/test_oip_models.py has the rest of the statistics."""
    metrics = Metrics()
    statistics = ModelStatistics(metrics, "toy/1")
    started = samples(metrics)
    sizes = [(8, 8, 0.5, "full"), (2, 4, 0.25, "drained"), (8, 8, 0.25, "full")]
    statistics.take(
        Report(
            calls=[ModelCall(*size, 0.0) for size in sizes],
            finished=[Finished(3, "ok", 0.25, 0.5), Finished(5, "deadline_exceeded", 2.0, 0.0)],
            limits=[32],
            devices_lost=1,
        )
    )
    statistics.take(
        Report(rejected=["queue_full"], cancelled=[4], early_exits=5, workers_replaced=1)
    )
    counters = {
        'ign_scheduled_requests_total{model="toy/1",outcome="ok"}': 1,
        'ign_scheduled_requests_total{model="toy/1",outcome="deadline_exceeded"}': 1,
        'ign_rejected_requests_total{model="toy/1",reason="queue_full"}': 1,
        'ign_cancelled_rows_total{model="toy/1"}': 4,
        'ign_early_exits_total{model="toy/1"}': 5,
        'ign_devices_lost_total{model="toy/1"}': 1,
        'ign_worker_replacements_total{model="toy/1"}': 1,
        'ign_padding_rows_total{model="toy/1"}': 2,
    }
    assert dict.fromkeys(counters, 0).items() <= started.items()
    assert counters.items() <= samples(metrics).items()
    assert {
        'ign_batch_rows_sum{model="toy/1"}': 18,
        'ign_batch_seconds_count{model="toy/1"}': 3,
        'ign_batches_total{model="toy/1",reason="full"}': 2,
        'ign_queue_seconds_count{model="toy/1"}': 2,
        'ign_compute_seconds_count{model="toy/1"}': 1,
        'ign_batch_size_reductions_total{model="toy/1",rows="32"}': 1,
    }.items() <= samples(metrics).items()
    failed = statistics.report()["inference_stats"]["fail"]
    assert failed == {"count": 3, "ns": 2_000_000_000}


def test_nothing_is_lost_while_metrics_are_read() -> None:
    metrics = Metrics()
    ended = threading.Event()

    def read(_: int) -> None:
        while not ended.is_set():
            metrics.render()

    with ThreadPoolExecutor(3) as pool:
        readers = pool.map(read, range(3))
        for _ in range(500):
            metrics.rows("toy/1", "/project", [result(*[1] * 60), result(*[2] * 40)])
        ended.set()
        list(readers)
    found = samples(metrics)
    assert found['ign_row_steps_count{model="toy/1"}'] == 50_000
    assert found['ign_row_steps_bucket{le="1.0",model="toy/1"}'] == 30_000
    for name in ("distance", "drift"):
        assert found[f'ign_{name}_sum{{endpoint="/project",model="toy/1"}}'] == 12_500.0


def test_scrapes_of_a_second_share_a_rendering_off_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = Metrics()
    threads = list[int]()
    gate = threading.Event()

    def collect(_: CollectorRegistry) -> list[Any]:
        threads.append(threading.get_ident())
        assert gate.wait(300)
        return []

    monkeypatch.setattr(CollectorRegistry, "collect", collect)

    async def main() -> None:
        scrapes = [
            asyncio.create_task(metrics.scrape(accept))
            for accept in ("", "text/plain", OPENMETRICS, "")
        ]
        await asyncio.sleep(0)
        scrapes.pop().cancel()  # a client that disconnects does not stop it for the others
        gate.set()  # the loop is free, though no rendering has ended
        first, second, openmetrics = await asyncio.gather(*scrapes)
        assert first is second is await metrics.scrape()
        assert openmetrics[1].startswith("application/openmetrics-text")
        monkeypatch.setattr("service.observability.metrics.CACHE_S", 0.0)
        assert await metrics.scrape() is not first

    asyncio.run(main())
    assert len(threads) == 3  # one for each format, and a newer one
    assert threading.get_ident() not in threads


def published(file: Path) -> Metrics:
    """One process after some requests."""
    metrics = Metrics(SharedFiles(file))
    metrics.model_info.labels("grey/1", "aaa", "CPUExecutionProvider", "exact").set(1)
    metrics.reference.labels("grey/1", "90").set(0.09)
    metrics.in_flight.set(3)
    metrics.ready.set(1)
    request = ended(
        model="toy/1", api_key="alice\n# HELP", trace=TraceContext("a" * 32, "b" * 16, 1)
    )
    metrics.requests("/generate", 200, [(0.02, request)])
    metrics.rows("toy/1", "/generate", [result(7)], "alice")
    metrics.publish()
    return metrics


def test_processes_add_up(tmp_path: Path) -> None:
    """One that replaces another goes on from its counters, and gauges of one that is gone do not
    count.
    """
    for name in ("0", "1", "1"):
        published(tmp_path / f"{name}.prom")
    (tmp_path / "quotas").write_bytes(bytes(100))
    metrics = Metrics(SharedFiles(tmp_path / "2.prom"))
    counted = {
        'ign_caller_requests_total{caller="alice\\n# HELP",status="2xx"}': 3,
        'ign_request_seconds_count{endpoint="/generate",model="toy/1"}': 3,
    }
    info = 'model="grey/1",provider="CPUExecutionProvider",reproducible="exact"'
    gauges = {
        f'ign_model_info{{digest="aaa",{info}}}': 1,
        'ign_distance_reference{model="grey/1",percentile="90"}': 0.09,
        "ign_requests_in_flight": 6,
        "ign_ready": 0,
    }
    values = samples(metrics)
    assert (counted | gauges).items() <= values.items()
    text = metrics.render(OPENMETRICS)[0].decode()
    heads = [line for line in text.split("\n") if line.startswith("#")]
    assert len(set(heads)) == len(heads)
    assert list(text_string_to_metric_families(text))
    for name in ("0", "1"):
        os.utime(tmp_path / f"{name}.prom", (0, 0))
    values = samples(metrics)
    assert values["ign_requests_in_flight"] == 0
    assert counted.items() <= values.items()


@pytest.mark.parametrize("is_removed", [True, False])
def test_a_folder_that_cannot_be_written_costs_the_metrics_only(
    tmp_path: Path,
    is_removed: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = published(tmp_path / "shared" / "0.prom")
    metrics.in_flight.set(2)
    if is_removed:  # a program that cleans folders has removed it
        shutil.rmtree(tmp_path / "shared")
    else:
        with monkeypatch.context() as patch:
            patch.setattr(
                Path,
                "write_bytes",
                Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")),
            )
            for _ in range(2):
                with pytest.raises(NotReady):
                    metrics.render()
        assert caplog.text.count("No space left on device") == 1
    assert samples(metrics)["ign_requests_in_flight"] == 2
