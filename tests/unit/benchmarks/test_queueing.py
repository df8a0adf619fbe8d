import pytest

from benchmarks.queueing import Load, Replica, interpolated, simulate
from service.settings import Settings

CALLS = [(1, 0.001), (2, 0.002), (64, 0.010)]


def replica(front_s: float = 0.0005, **settings: float) -> Replica:
    return Replica(call=interpolated(CALLS), front_s=front_s, settings=Settings(**settings))  # type: ignore[arg-type]


def test_costs_between_what_was_measured() -> None:
    call = interpolated(CALLS)
    assert [call(rows) for rows in (1, 2, 33, 64)] == pytest.approx([0.001, 0.002, 0.006, 0.010])
    assert call(126) == pytest.approx(0.018)
    with pytest.raises(ValueError, match="two points"):
        interpolated(CALLS[:1])


def test_a_request_alone_takes_what_it_costs() -> None:
    seen = simulate(replica(), Load(requests=20))
    assert (seen.p50_ms, seen.p99_ms) == pytest.approx((1.5, 1.5))
    assert seen.per_s == pytest.approx(1000 / 1.5, rel=0.1)
    assert (seen.refused, seen.late) == (0, 0)


def test_steps_follow_one_another() -> None:
    assert simulate(replica(), Load(requests=20, steps=100)).p50_ms == pytest.approx(100.5)


def test_a_device_takes_its_buckets() -> None:
    padded = Replica(call=interpolated(CALLS), front_s=0.0, buckets=(2, 64))
    assert simulate(padded, Load(requests=20)).p50_ms == pytest.approx(2)
    assert simulate(padded, Load(requests=20, rows=3)).p50_ms == pytest.approx(10)


def test_a_seed_is_a_result() -> None:
    load = Load(requests=300, per_s=900)
    first = simulate(replica(), load)
    assert simulate(replica(), load) == first
    assert simulate(replica(), load, seed=7) != first
    assert first.p99_ms > first.p50_ms > 1.5


def test_callers_fill_the_batches() -> None:
    full = simulate(replica(), Load(requests=400, rows=64, callers=4))
    assert full.per_s == pytest.approx(100, rel=0.05)
    assert full.p50_ms == pytest.approx(40, rel=0.05)


def test_short_requests_wait_for_a_pass_and_not_for_long_ones() -> None:
    cost = interpolated(CALLS)
    beside = simulate(replica(0.0), Load(requests=100, long=8))
    assert cost(9) * 1e3 <= beside.p99_ms <= (cost(8) + cost(9)) * 1e3 * 1.001


def test_a_full_queue_refuses_and_keeps_its_word() -> None:
    seen = simulate(replica(queue_rows=640), Load(requests=1000, rows=64, per_s=300))
    assert seen.refused == pytest.approx(2 / 3, abs=0.05)
    assert seen.per_s == pytest.approx(100, rel=0.05)
    assert seen.p99_ms <= 120
    assert seen.late == 0


def test_too_many_in_flight_are_refused() -> None:
    seen = simulate(replica(0.01, max_connections=16), Load(requests=1000, per_s=300))
    assert seen.refused == pytest.approx(2 / 3, abs=0.05)
    assert seen.p99_ms <= 16 * 10 + 10


def test_a_deadline_that_passes_is_counted() -> None:
    slow = Replica(call=lambda _: 0.2, front_s=0.0, settings=Settings(request_timeout_s=0.3))
    # Nothing is refused on a prediction before eight calls have been seen.
    seen = simulate(slow, Load(requests=10, rows=64, per_s=4))
    assert seen.late > 0
    assert seen.refused == 0
    assert seen.p99_ms <= 300
    assert simulate(slow, Load(requests=200, rows=64, per_s=4)).refused > 0


def test_nobody_was_answered() -> None:
    hopeless = Replica(call=lambda _: 2.0, front_s=0.0, settings=Settings(request_timeout_s=1.0))
    with pytest.raises(ValueError, match="nobody was answered"):
        simulate(hopeless, Load(requests=4))


def test_what_breaks_within_a_call_is_not_taken_for_the_model_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.queueing._rows", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        simulate(replica(), Load(requests=4, per_s=1000))
