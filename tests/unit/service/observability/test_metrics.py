import asyncio
import errno
import os
import platform
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service import __version__
from service.environment import onnxruntime_version
from service.observability.logs import TraceContext
from service.observability.metrics import (
    MAX_CALLERS,
    MAX_MODELS,
    MAX_VALUES,
    OTHER,
    Metrics,
    SharedFiles,
    label_limiter,
)
from service.observability.statistics import ModelStatistics
from service.scheduling.observer import Finished

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.2"
"""The beginning of what Prometheus sends as Accept."""
DESCRIBED: dict[str, Any] = {"digest": "aaa", "provider": "CPUExecutionProvider", "reproducible": "exact"}


def ended(**values: Any) -> Any:
    """A request that has ended, with what metrics read of it."""
    return SimpleNamespace(**{"model": None, "api_key": None, "problem": None, "trace": None} | values)


def samples(metrics: Metrics) -> dict[str, float]:
    """Every line of the text, such as `ign_batches_total{model="toy/1",reason="full"}`, and its value."""
    lines = [line for line in metrics.render()[0].decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_requests_count_by_route_status_class_model_and_the_name_of_the_key() -> None:
    metrics = Metrics()
    metrics.add_callers(["alice", "bob"])
    requests = [(0.02, ended(model="toy/1", api_key="alice")), (0.03, ended(model="toy/1"))]
    metrics.requests("/generate", 200, requests)
    metrics.requests("/generate", 499, [(0.04, ended(api_key="alice", trace=TraceContext("a" * 32, "b" * 16, 0)))])
    metrics.requests("/generate", 429, [(0.0, ended(problem="queue_full"))])
    metrics.codec("encode_png", 0.0002)
    metrics.set_queue_rows({"toy/1": 9, "grey/1": 3})
    metrics.set_queue_rows({"grey/1": 4})
    metrics.rows("toy/1", "/project", steps=[1, 300], distances=[0.05, 0.3], drifts=[0.004], api_key="alice")
    metrics.rows("toy/1", "/project", steps=[5], distances=[0.1])
    assert {
        'ign_requests_total{endpoint="/generate",model="toy/1",status="2xx"}': 2,
        'ign_requests_total{endpoint="/generate",model="none",status="4xx"}': 2,
        'ign_request_seconds_count{endpoint="/generate",model="toy/1"}': 2,
        'ign_request_seconds_sum{endpoint="/generate",model="toy/1"}': 0.05,
        'ign_request_seconds_bucket{endpoint="/generate",le="0.025",model="toy/1"}': 1,
        'ign_http_errors_total{code="queue_full"}': 1,
        'ign_queue_rows{model="toy/1"}': 0,  # the latest reading names it no more
        'ign_queue_rows{model="grey/1"}': 4,
        'ign_codec_seconds_bucket{le="0.00025",operation="encode_png"}': 1,
        'ign_row_steps_sum{model="toy/1"}': 306,
        'ign_distance_count{endpoint="/project",model="toy/1"}': 3,
        'ign_drift_sum{endpoint="/project",model="toy/1"}': 0.004,
    }.items() <= samples(metrics).items()
    assert {name: value for name, value in samples(metrics).items() if name.startswith("ign_caller_")} == {
        'ign_caller_requests_total{caller="alice",status="2xx"}': 1,
        'ign_caller_requests_total{caller="alice",status="4xx"}': 1,
        'ign_caller_requests_total{caller="bob",status="2xx"}': 0,
        'ign_caller_row_steps_total{caller="alice"}': 301,
        'ign_caller_row_steps_total{caller="bob"}': 0,
    }
    assert not re.search("trace_id|_created", metrics.render(OPENMETRICS)[0].decode())  # that trace is not recorded


def test_one_model_is_described_once_and_with_the_percentiles_of_its_card() -> None:
    metrics = Metrics()
    metrics.loaded("toy/1", quantiles=[percent / 1000 for percent in range(101)], **DESCRIBED | {"digest": "bbb"})
    metrics.loaded("toy/1", quantiles=[percent / 1000 for percent in range(101)], **DESCRIBED)
    metrics.loaded("bare/1", **DESCRIBED)
    named = [name for name in samples(metrics) if name.startswith("ign_model_info{")]
    assert ['digest="aaa"' in name for name in named] == [True, True]
    reference = {name: value for name, value in samples(metrics).items() if name.startswith("ign_distance_reference")}
    assert reference == {
        f'ign_distance_reference{{model="toy/1",percentile="{percent}"}}': percent / 1000 for percent in (50, 90, 99)
    }
    for model in ("toy/1", "toy/1", "bare/1"):
        metrics.unloaded(model)
    assert not [name for name in samples(metrics) if "/1" in name]


def test_the_number_of_label_values_is_limited() -> None:
    limiter = label_limiter(2)
    assert [limiter(text) for text in "abcab"] == ["a", "b", OTHER, "a", "b"]
    metrics = Metrics()
    observer = ModelStatistics(metrics, "toy/1")
    for i in range(MAX_MODELS + 2):
        metrics.requests(f"/{i}", 200, [(0.1, ended(model=f"m{i}/1", problem=f"e{i}", api_key=f"k{i}"))])
        metrics.codec(f"c{i}", 0.1)
        metrics.rows(f"m{i}/1", f"/{i}", [1], [0.1], [0.1])
        observer.rejected(f"r{i}")
        observer.batch(1, 1, 0.1, f"f{i}")
    values = samples(metrics)
    names = [name.partition("{")[0] for name in values]
    for name in ("ign_http_errors_total", "ign_rejected_requests_total", "ign_codec_seconds_sum"):
        assert names.count(name) <= MAX_VALUES + 1, name
    assert MAX_VALUES + 1 < names.count("ign_distance_sum") <= MAX_MODELS + 1
    assert values[f'ign_http_errors_total{{code="{OTHER}"}}'] == MAX_MODELS + 2 - MAX_VALUES
    metrics.add_callers([f"k{i}" for i in range(MAX_CALLERS + 2)])
    assert str(samples(metrics).keys()).count("ign_caller_requests_total") == MAX_CALLERS + 1


def test_every_metric_is_named_and_described_as_prometheus_wants_and_none_is_global() -> None:
    for family in text_string_to_metric_families(Metrics().render()[0].decode()):
        assert family.name.startswith(("ign_", "process_"))
        assert family.documentation.endswith(".")
    assert not any(family.name.startswith("ign_") for family in REGISTRY.collect())


def test_a_scheduler_reports_to_metrics_and_statistics() -> None:
    metrics = Metrics()
    statistics = ModelStatistics(metrics, "toy/1", clock=lambda: 1_700_000_000.5)
    started, report = samples(metrics), statistics.report()
    assert (report["inference_count"], report["last_inference"]) == (0, 0)
    statistics.batch(8, 8, 0.5, "full")
    statistics.batch(2, 4, 0.25, "drained")
    statistics.batch(8, 8, 0.25, "full")
    earlier = statistics.report()["inference_stats"]
    statistics.finished([Finished(3, "ok", 0.25, 0.5), Finished(5, "deadline_exceeded", 2.0, 0.0)])
    statistics.tensors(0.125, 0.0625)
    statistics.finished([Finished(1, "ok", 0.0, 1.0)])  # of another endpoint: no tensors were read
    statistics.rejected("queue_full")
    statistics.cancelled(4)
    statistics.early_exit(5)
    statistics.reduce_max_batch(32)
    statistics.device_lost()
    statistics.worker_replaced()
    counters = {
        'ign_scheduled_requests_total{model="toy/1",outcome="ok"}': 2,
        'ign_scheduled_requests_total{model="toy/1",outcome="deadline_exceeded"}': 1,
        'ign_rejected_requests_total{model="toy/1",reason="queue_full"}': 1,
        'ign_cancelled_rows_total{model="toy/1"}': 4,
        'ign_early_exits_total{model="toy/1"}': 5,
        'ign_devices_lost_total{model="toy/1"}': 1,
        'ign_worker_replacements_total{model="toy/1"}': 1,
    }
    assert dict.fromkeys(counters, 0).items() <= started.items()
    assert counters.items() <= samples(metrics).items()
    assert {
        'ign_batch_rows_sum{model="toy/1"}': 18,
        'ign_batch_seconds_count{model="toy/1"}': 3,
        'ign_padding_rows_total{model="toy/1"}': 2,
        'ign_batches_total{model="toy/1",reason="full"}': 2,
        'ign_batches_total{model="toy/1",reason="drained"}': 1,
        'ign_queue_seconds_count{model="toy/1"}': 3,
        'ign_compute_seconds_count{model="toy/1"}': 2,
        'ign_batch_size_reductions_total{model="toy/1",rows="32"}': 1,
    }.items() <= samples(metrics).items()
    report = statistics.report()
    assert (report["inference_count"], report["last_inference"], report["execution_count"]) == (4, 1_700_000_000_500, 3)
    assert report["inference_stats"] == {
        "success": {"count": 2, "ns": 1_937_500_000},
        "fail": {"count": 3, "ns": 2_000_000_000},
        "queue": {"count": 2, "ns": 250_000_000},
        "compute_input": {"count": 2, "ns": 125_000_000},
        "compute_infer": {"count": 2, "ns": 1_500_000_000},
        "compute_output": {"count": 2, "ns": 62_500_000},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
    }
    batches = [(batch["batch_size"], batch["compute_infer"]) for batch in report["batch_stats"]]
    assert batches == [(2, {"count": 1, "ns": 250_000_000}), (8, {"count": 2, "ns": 750_000_000})]
    assert earlier["success"] == {"count": 0, "ns": 0}  # a copy


def test_nothing_is_lost_while_metrics_are_read() -> None:
    metrics, ended = Metrics(), threading.Event()

    def read(_: int) -> None:
        while not ended.is_set():
            metrics.render()

    with ThreadPoolExecutor(3) as pool:
        readers = pool.map(read, range(3))
        for _ in range(500):
            metrics.rows("toy/1", "/project", [1] * 100, [0.25] * 100)
        ended.set()
        list(readers)
    found = samples(metrics)
    assert found['ign_row_steps_count{model="toy/1"}'] == 50_000
    assert found['ign_distance_sum{endpoint="/project",model="toy/1"}'] == 12_500.0


def test_scrapes_of_a_second_share_a_rendering_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, threads, gate = Metrics(), list[int](), threading.Event()

    def collect(_: CollectorRegistry) -> list[Any]:
        threads.append(threading.get_ident())
        assert gate.wait(300)
        return []

    monkeypatch.setattr(CollectorRegistry, "collect", collect)

    async def main() -> None:
        scrapes = [asyncio.create_task(metrics.scrape(accept)) for accept in ("", "text/plain", OPENMETRICS, "")]
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
    metrics.loaded("toy/1", **DESCRIBED)
    metrics.unloaded("toy/1")
    metrics.loaded("grey/1", **DESCRIBED)
    metrics.in_flight.set(3)
    metrics.ready.set(1)
    request = ended(model="toy/1", api_key="alice\n# HELP", trace=TraceContext("a" * 32, "b" * 16, 1))
    metrics.requests("/generate", 200, [(0.02, request)])
    metrics.rows("toy/1", "/generate", [7], [0.1], api_key="alice")
    metrics.publish()
    return metrics


def test_processes_add_up(tmp_path: Path) -> None:
    published(tmp_path / "0.prom"), published(tmp_path / "1.prom")
    metrics = Metrics(SharedFiles(tmp_path / "2.prom"))
    (tmp_path / "quotas").write_bytes(bytes(100))
    text, values = metrics.render(OPENMETRICS)[0].decode(), samples(metrics)
    assert {
        f'ign_build_info{{onnxruntime="{onnxruntime_version()}",python="{platform.python_version()}",'
        f'version="{__version__}"}}': 1,
        'ign_model_info{digest="aaa",model="grey/1",provider="CPUExecutionProvider",reproducible="exact"}': 1,
        "ign_requests_in_flight": 6,
        "ign_ready": 0,  # of the third
        'ign_caller_requests_total{caller="alice\\n# HELP",status="2xx"}': 2,
        'ign_caller_row_steps_total{caller="alice"}': 14,
        'ign_request_seconds_count{endpoint="/generate",model="toy/1"}': 2,
    }.items() <= values.items()
    assert not [name for name in values if "ign_model_info" in name and "toy/1" in name]
    heads = [line for line in text.split("\n") if line.startswith("#")]
    assert len(set(heads)) == len(heads)
    assert list(text_string_to_metric_families(text))


def test_a_process_goes_on_from_the_counters_of_the_one_that_it_replaces(tmp_path: Path) -> None:
    """So 500 that have ended cost a scrape no more than one."""
    other = Metrics(SharedFiles(tmp_path / "other.prom"))
    name = 'ign_request_seconds_count{endpoint="/generate",model="toy/1"}'
    for count in range(1, 4):
        published(tmp_path / "0.prom")
        assert samples(other)[name] == count
        assert samples(other)["ign_requests_in_flight"] == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_the_gauges_of_a_process_that_writes_no_more_do_not_count(tmp_path: Path) -> None:
    published(tmp_path / "0.prom")
    os.utime(tmp_path / "0.prom", (0, 0))
    values = samples(Metrics(SharedFiles(tmp_path / "1.prom")))
    assert values["ign_requests_in_flight"] == 0
    assert values['ign_caller_row_steps_total{caller="alice"}'] == 7


@pytest.mark.parametrize("is_removed", [True, False])
def test_a_folder_that_cannot_be_written_costs_the_metrics_only(
    tmp_path: Path, is_removed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = published(tmp_path / "shared" / "0.prom")
    metrics.in_flight.set(2)
    if is_removed:  # a program that cleans folders has removed it
        shutil.rmtree(tmp_path / "shared")
    else:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
            assert [samples(metrics)["ign_requests_in_flight"] for _ in range(2)] == [3, 3]
        assert caplog.text.count("No space left on device") == 1
    assert samples(metrics)["ign_requests_in_flight"] == 2
