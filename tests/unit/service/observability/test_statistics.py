import threading

import pytest

from service.observability.metrics import Metrics
from service.observability.statistics import Duration, ModelStatistics


def test_metrics_count_too() -> None:
    metrics = Metrics()
    statistics = ModelStatistics(metrics, "toy/1")
    statistics.batch(2, 4, 0.5, "full")
    statistics.finished(2, "ok", 0.1, 0.2)
    statistics.rejected("queue_full")
    statistics.cancelled(3)
    sent = metrics.render()[0].decode()
    for line in (
        'ign_batches_total{model="toy/1",reason="full"} 1.0',
        'ign_scheduled_requests_total{model="toy/1",outcome="ok"} 1.0',
        'ign_rejected_requests_total{model="toy/1",reason="queue_full"} 1.0',
        'ign_cancelled_rows_total{model="toy/1"} 3.0',
    ):
        assert line in sent


def test_parts_add_up() -> None:
    statistics = ModelStatistics(Metrics(), "toy/1", clock=lambda: 1_700_000_000.5)
    assert (statistics.counts().rows, statistics.counts().last_ms) == (0, 0)
    statistics.finished(3, "ok", 0.25, 0.5)
    statistics.tensors(0.125, 0.0625)
    statistics.finished(1, "ok", 0.0, 1.0)  # of another endpoint: no tensors were read
    statistics.finished(5, "deadline_exceeded", 2.0, 0.0)
    statistics.rejected("queue_full")
    statistics.cancelled(4)
    counts = statistics.counts()
    assert (counts.rows, counts.last_ms) == (4, 1_700_000_000_500)
    assert counts.success == Duration(2, 1.9375)
    assert counts.fail == Duration(3, 2.0)
    assert counts.queue == Duration(2, 0.25)
    assert counts.input == Duration(2, 0.125)
    assert counts.infer == Duration(2, 1.5)
    assert counts.output == Duration(2, 0.0625)
    assert counts.success.ns == 1_937_500_000


def test_batches_are_counted_by_their_rows_in_order() -> None:
    statistics = ModelStatistics(Metrics(), "toy/1")
    for rows, seconds in ((8, 0.5), (2, 0.25), (8, 0.25)):
        statistics.batch(rows, rows, seconds, "drained")
    assert list(statistics.counts().batches.items()) == [(2, Duration(1, 0.25)), (8, Duration(2, 0.75))]


def test_counts_do_not_change_once_they_are_read() -> None:
    statistics = ModelStatistics(Metrics(), "toy/1")
    statistics.batch(1, 1, 1.0, "full")
    before = statistics.counts()
    statistics.batch(1, 1, 1.0, "full")
    statistics.finished(1, "ok", 0.0, 1.0)
    assert before.batches[1] == Duration(1, 1.0)
    assert before.success == Duration()


@pytest.mark.parametrize("threads", [4])
def test_nothing_is_lost_between_threads(threads: int) -> None:
    statistics = ModelStatistics(Metrics(), "toy/1")

    def report() -> None:
        for _ in range(2_000):
            statistics.finished(1, "ok", 0.0, 1.0)
            statistics.batch(1, 1, 1.0, "full")

    workers = [threading.Thread(target=report) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    counts = statistics.counts()
    assert counts.rows == counts.success.count == counts.infer.seconds == counts.batches[1].count == threads * 2_000
