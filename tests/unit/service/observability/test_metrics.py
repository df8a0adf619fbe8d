import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from service import __version__
from service.observability.logs import TraceContext
from service.observability.metrics import (
    MAX_CALLERS,
    MAX_VALUES,
    OTHER,
    LabelLimiter,
    Metrics,
    ModelStatistics,
    observe_all,
)
from service.scheduling.scheduler import SchedulerObserver
from tests.helpers.live import environment


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = metrics.render()[0].decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, frozenset(labels.items())]


def test_requests_count_by_route_status_class_and_model() -> None:
    metrics = Metrics()
    metrics.request("/generate", 200, 0.02, {"model": "toy/1"})
    metrics.request("/generate", 204, 0.03, {"model": "toy/1"})
    metrics.request("/generate", 499, 0.04, {})
    assert value(metrics, "ign_requests_total", endpoint="/generate", status="2xx", model="toy/1") == 2
    assert value(metrics, "ign_requests_total", endpoint="/generate", status="4xx", model="none") == 1
    assert value(metrics, "ign_request_seconds_count", endpoint="/generate", model="toy/1") == 2
    assert value(metrics, "ign_request_seconds_sum", endpoint="/generate", model="toy/1") == pytest.approx(0.05)
    assert value(metrics, "ign_request_seconds_bucket", endpoint="/generate", model="toy/1", le="0.025") == 1
    assert value(metrics, "ign_request_seconds_count", endpoint="/generate", model="none") == 1


def test_callers_with_a_key_count_by_its_name() -> None:
    metrics = Metrics()
    metrics.add_callers(["alice", "bob"])
    metrics.request("/generate", 200, 0.1, {"api_key": "alice", "caller": "alice"})
    metrics.request("/generate", 429, 0.1, {"api_key": "alice", "caller": "alice"})
    metrics.request("/generate", 200, 0.1, {"caller": "192.0.2.1"})
    metrics.rows("toy/1", "/project", steps=[1, 300], distances=[0.1, 0.1], api_key="alice")
    metrics.rows("toy/1", "/project", steps=[5], distances=[0.1])
    found = {key: amount for key, amount in samples(metrics).items() if key[0].startswith("ign_caller_")}
    assert found == {
        ("ign_caller_requests_total", frozenset({("caller", "alice"), ("status", "2xx")})): 1,
        ("ign_caller_requests_total", frozenset({("caller", "alice"), ("status", "4xx")})): 1,
        ("ign_caller_requests_total", frozenset({("caller", "bob"), ("status", "2xx")})): 0,
        ("ign_caller_row_steps_total", frozenset({("caller", "alice")})): 301,
        ("ign_caller_row_steps_total", frozenset({("caller", "bob")})): 0,
    }


def test_versions_are_exported() -> None:
    metrics = Metrics()
    metrics.describe_build("1.2.3")
    build = {"version": __version__, "python": platform.python_version(), "onnxruntime": "1.2.3"}
    assert value(metrics, "ign_build_info", **build) == 1


OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.2"
"""The beginning of what Prometheus sends as Accept."""


def test_openmetrics_has_the_recorded_traces_as_exemplars() -> None:
    metrics = Metrics()
    ModelStatistics(metrics, "toy/1")
    recorded, dropped = (TraceContext(digit * 32, digit * 16, flags) for digit, flags in (("a", 1), ("b", 0)))
    for trace in (recorded, dropped):
        metrics.request("/generate", 200, 0.02, {"model": "toy/1", "trace": trace})
    content, kind = metrics.render(OPENMETRICS)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    families = list(openmetrics_families(content.decode()))  # type: ignore[no-untyped-call]
    found = [sample for family in families for sample in family.samples]
    exemplars = [sample.exemplar for sample in found if sample.exemplar is not None]
    assert [(exemplar.labels, exemplar.value) for exemplar in exemplars] == [({"trace_id": "a" * 32}, 0.02)]
    assert "a" * 32 not in metrics.render("text/plain")[0].decode()


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_no_series_says_when_another_was_created(accept: str) -> None:
    metrics = Metrics()
    metrics.request("/generate", 200, 0.02, {"model": "toy/1"})
    assert b"_created" not in metrics.render(accept)[0]


def test_errors_codecs_and_rows() -> None:
    metrics = Metrics()
    metrics.request("/generate", 429, 0.0, {"problem": "queue_full"})
    metrics.codec("encode_png", 0.0002)
    metrics.rows("toy/1", "/project", steps=[1, 300], distances=[0.05, 0.3], drifts=[0.004])
    assert value(metrics, "ign_http_errors_total", code="queue_full") == 1
    assert value(metrics, "ign_codec_seconds_bucket", operation="encode_png", le="0.00025") == 1
    assert value(metrics, "ign_row_steps_sum", model="toy/1") == 301
    assert value(metrics, "ign_distance_count", model="toy/1", endpoint="/project") == 2
    assert value(metrics, "ign_drift_sum", model="toy/1", endpoint="/project") == pytest.approx(0.004)


def test_the_scheduler_reports() -> None:
    metrics = Metrics()
    observer: SchedulerObserver = ModelStatistics(metrics, "toy/1")
    observer.batch(3, 4, 0.002, "full")
    observer.batch(4, 4, 0.002, "drained")
    observer.finished(3, "ok", 0.004, 0.01)
    observer.finished(1, "deadline_exceeded", 1.0, 0.0)
    observer.rejected("queue_full")
    observer.cancelled(2)
    observer.early_exit(5)
    observer.reduce_max_batch(32)
    observer.device_lost()
    observer.worker_replaced()
    expected = {
        ("ign_batch_rows_sum", "", ""): 7,
        ("ign_batch_seconds_count", "", ""): 2,
        ("ign_padding_rows_total", "", ""): 1,
        ("ign_batches_total", "reason", "full"): 1,
        ("ign_batches_total", "reason", "drained"): 1,
        ("ign_scheduled_requests_total", "outcome", "ok"): 1,
        ("ign_scheduled_requests_total", "outcome", "deadline_exceeded"): 1,
        ("ign_queue_seconds_count", "", ""): 2,
        ("ign_compute_seconds_count", "", ""): 1,
        ("ign_rejected_requests_total", "reason", "queue_full"): 1,
        ("ign_cancelled_rows_total", "", ""): 2,
        ("ign_early_exits_total", "", ""): 5,
        ("ign_batch_size_reductions_total", "rows", "32"): 1,
        ("ign_devices_lost_total", "", ""): 1,
        ("ign_worker_replacements_total", "", ""): 1,
    }
    for (name, label, content), amount in expected.items():
        labels = {label: content} if label else {}
        assert value(metrics, name, model="toy/1", **labels) == amount, name


def test_rows_that_wait_are_those_of_the_latest_reading() -> None:
    metrics = Metrics()
    metrics.set_queue_rows({"toy/1": 9, "grey/1": 3})
    metrics.set_queue_rows({"grey/1": 4})
    assert value(metrics, "ign_queue_rows", model="toy/1") == 0
    assert value(metrics, "ign_queue_rows", model="grey/1") == 4


def test_one_model_is_described_once() -> None:
    metrics = Metrics()
    metrics.loaded("toy/1", digest="aaa", provider="CPUExecutionProvider", reproducible="exact")
    metrics.loaded("toy/1", digest="bbb", provider="CPUExecutionProvider", reproducible="exact")
    infos = [dict(labels)["digest"] for name, labels in samples(metrics) if name == "ign_model_info"]
    assert infos == ["bbb"]
    metrics.unloaded("toy/1")
    metrics.unloaded("toy/1")
    assert "ign_model_info{" not in metrics.render()[0].decode()


def test_the_percentiles_of_the_card_are_exported() -> None:
    metrics = Metrics()
    quantiles = [percent / 1000 for percent in range(101)]
    described: dict[str, Any] = {"digest": "aaa", "provider": "CPUExecutionProvider", "reproducible": "exact"}
    metrics.loaded("toy/1", quantiles=quantiles, **described)
    metrics.loaded("bare/1", quantiles=None, **described)
    found = {labels: amount for (name, labels), amount in samples(metrics).items() if name == "ign_distance_reference"}
    assert {(dict(labels)["model"], dict(labels)["percentile"], amount) for labels, amount in found.items()} == {
        ("toy/1", "50", 0.05),
        ("toy/1", "90", 0.09),
        ("toy/1", "99", 0.099),
    }
    metrics.loaded("toy/1", quantiles=None, **described)
    metrics.unloaded("toy/1")
    assert "ign_distance_reference{" not in metrics.render()[0].decode()


def test_counters_start_at_zero() -> None:
    metrics = Metrics()
    ModelStatistics(metrics, "toy/1")
    for outcome in ("ok", "deadline_exceeded", "model_failure"):
        assert value(metrics, "ign_scheduled_requests_total", model="toy/1", outcome=outcome) == 0
    for reason in ("queue_full", "would_miss_deadline"):
        assert value(metrics, "ign_rejected_requests_total", model="toy/1", reason=reason) == 0
    for name in ("ign_worker_replacements_total", "ign_early_exits_total", "ign_cancelled_rows_total"):
        assert value(metrics, name, model="toy/1") == 0


def test_a_process_exports_its_start_and_is_not_ready() -> None:
    before = time.time()
    metrics = Metrics()
    assert before <= value(metrics, "ign_start_time_seconds") <= time.time()
    assert value(metrics, "ign_ready") == 0


def test_the_number_of_label_values_is_limited() -> None:
    metrics = Metrics()
    observer = ModelStatistics(metrics, "toy/1")
    for i in range(3 * MAX_VALUES):
        metrics.request(f"/{i}", 200, 0.1, {"model": f"m{i}/1", "problem": f"e{i}", "api_key": f"k{i}"})
        metrics.codec(f"c{i}", 0.1)
        metrics.rows(f"m{i}/1", f"/{i}", [1], [0.1], [0.1])
        observer.rejected(f"r{i}")
        observer.batch(1, 1, 0.1, f"f{i}")
    found = samples(metrics)
    for name in ("ign_http_errors_total", "ign_rejected_requests_total", "ign_codec_seconds_sum", "ign_distance_sum"):
        assert len([key for key in found if key[0] == name]) <= MAX_VALUES + 1, name
    assert value(metrics, "ign_http_errors_total", code=OTHER) == 2 * MAX_VALUES
    metrics.add_callers([f"k{i}" for i in range(2 * MAX_CALLERS)])
    assert len([key for key in samples(metrics) if key[0] == "ign_caller_requests_total"]) == MAX_CALLERS + 1


def test_a_limiter_keeps_what_it_has_seen() -> None:
    limiter = LabelLimiter(2)
    assert [limiter(text) for text in "abcab"] == ["a", "b", OTHER, "a", "b"]


def test_nothing_is_global() -> None:
    first, second = Metrics(), Metrics()
    first.request("/generate", 400, 0.0, {"problem": "x"})
    assert ("ign_http_errors_total", frozenset({("code", "x")})) not in samples(second)
    assert not any(family.name.startswith("ign_") for family in REGISTRY.collect())


def test_the_process_is_described() -> None:
    assert samples(Metrics())["process_resident_memory_bytes", frozenset()] > 1e6


def test_every_metric_is_named_and_described_as_prometheus_wants() -> None:
    content, kind = Metrics().render()
    assert kind.startswith("text/plain; version=")
    for family in text_string_to_metric_families(content.decode()):
        assert family.name.startswith(("ign_", "process_"))
        assert family.documentation.endswith(".")


def test_threads_may_report_at_once() -> None:
    metrics = Metrics()
    observer = ModelStatistics(metrics, "toy/1")

    def report() -> None:
        for _ in range(500):
            observer.batch(1, 2, 0.001, "full")

    threads = [threading.Thread(target=report) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, "ign_padding_rows_total", model="toy/1") == 2000


def test_a_process_that_creates_its_files_does_not_break_the_others(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    ended = threading.Event()

    def create() -> None:
        file = tmp_path / "counter_1.db"
        while not ended.is_set():
            file.write_bytes(b"")  # what another process sees until the file has its size
            MmapedDict(str(file)).close()  # type: ignore[no-untyped-call]

    other = threading.Thread(target=create)
    other.start()
    try:
        for _ in range(200):
            metrics.render()
    finally:
        ended.set()
        other.join()


PROCESS = """
import sys
from pathlib import Path
from service.observability.metrics import Metrics
from service.observability.logs import TraceContext

metrics = Metrics(Path(sys.argv[1]))
metrics.describe_build("1.2.3")
metrics.add_callers(["alice"])
metrics.in_flight.set(3)
trace = TraceContext("a" * 32, "b" * 16, 1)
metrics.request("/generate", 200, 0.02, {"model": "toy/1", "api_key": "alice", "trace": trace})
metrics.rows("toy/1", "/generate", [7], [0.1], api_key="alice")
sys.stdin.read()
"""


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_processes_add_up(tmp_path: Path, accept: str) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    environ = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    processes = [subprocess.Popen(command, env=environment(**environ), stdin=subprocess.PIPE) for _ in range(2)]
    try:
        metrics = Metrics(tmp_path)
        expected = {
            f'ign_build_info{{onnxruntime="1.2.3",python="{platform.python_version()}",version="{__version__}"}} 1.0',
            "ign_requests_in_flight 6.0",
            'ign_caller_requests_total{caller="alice",status="2xx"} 2.0',
            'ign_caller_row_steps_total{caller="alice"} 14.0',
            'ign_request_seconds_count{endpoint="/generate",model="toy/1"} 2.0',
        }
        deadline = time.monotonic() + 60
        while not expected <= set(said := metrics.render(accept)[0].decode().splitlines()):
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
    finally:
        for process in processes:
            process.communicate()


@given(st.lists(st.floats(-1.0, 2.0), max_size=20))
def test_values_are_observed_together_as_one_by_one(values: list[float]) -> None:
    registries = CollectorRegistry(), CollectorRegistry()
    together, single = (Histogram("x", "x", buckets=(0.0, 0.5, 1.0), registry=registry) for registry in registries)
    observe_all(together, values)
    for value in values:
        single.observe(value)
    for bound in ("0.0", "0.5", "1.0", "+Inf"):
        got, want = (registry.get_sample_value("x_bucket", {"le": bound}) for registry in registries)
        assert got == want
    assert registries[0].get_sample_value("x_sum") == pytest.approx(registries[1].get_sample_value("x_sum"))
