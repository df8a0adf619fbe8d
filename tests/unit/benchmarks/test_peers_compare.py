import pytest

from benchmarks.harness import tables
from benchmarks.harness.common import Json
from benchmarks.peers import compare
from benchmarks.peers.servers import Entry

OURS, OURS_2, DEFAULT = (Entry(name="ign", processes=number) for number in (1, 2, 0))
MOSEC, MOSEC_2, RAY = Entry(name="mosec", processes=1), Entry(name="mosec", processes=2), Entry(name="ray", processes=1)


def load(rate: float, p99: float = 10.0, *, statuses: dict[str, int] | None = None, errors: int = 0) -> Json:
    return {
        "ok_per_s": rate,
        "ok": {"count": 10, "p50_ms": p99 / 2, "p99_ms": p99, "p999_ms": p99 * 2},
        "statuses": {status: {"count": count} for status, count in (statuses or {"200": 10}).items()},
        "errors": {"cut_off": errors},
        "unanswered": 0,
        "server_core_ms_per_request": 0.5,
        "client_core_ms_per_request": 0.1,
    }


def turn(*args: float, **options: object) -> Json:
    return {"loads": {"png": {"32": load(*args, **options)}}}  # type: ignore[arg-type]


@pytest.fixture
def reports() -> dict[Entry, list[Json]]:
    """Three rounds; in the second the machine runs at half its speed."""
    return {
        DEFAULT: [turn(900, 20), turn(450, 40), turn(900, 20)],
        OURS: [turn(1500, 20), turn(750, 40), turn(1500, 20)],
        OURS_2: [turn(2400, 12), turn(1200, 24), turn(2400, 12)],
        MOSEC: [turn(1000, 10), turn(500, 20), turn(1000, 10)],
        MOSEC_2: [turn(1600, 12), turn(800, 24), turn(1600, 12)],
        RAY: [turn(100, 90), turn(50, 180), turn(100, 90)],
    }


RAW = {1: [2000.0, 1000.0, 2000.0], 2: [4000.0, 2000.0, 4000.0]}


def test_a_line_is_the_medians_and_the_share_of_raw_with_as_many_processes(reports: dict[Entry, list[Json]]) -> None:
    table = compare.lines(reports, RAW, "png", 32)
    assert table[OURS]["requests_per_s"] == 1500
    assert (table[OURS]["p50_ms"], table[OURS]["p99_ms"], table[OURS]["p999_ms"]) == (10, 20, 40)
    assert table[OURS]["share_of_raw"] == 0.75
    assert table[OURS_2]["share_of_raw"] == 0.6
    assert table[DEFAULT]["share_of_raw"] == 0.45
    assert table[OURS]["server_core_ms_per_request"] == 0.5


def test_what_failed_is_summed_over_the_rounds() -> None:
    rounds = [load(10, statuses={"200": 90, "503": 10}, errors=1), load(10, statuses={"200": 99, "429": 1}, errors=2)]
    assert compare.statuses(rounds) == {"200": 189, "503": 10, "429": 1}
    assert compare.line(rounds, [10, 10])["not_200"] == 14


def test_each_of_ours_is_beside_the_best_with_as_many_processes(reports: dict[Entry, list[Json]]) -> None:
    found = compare.ratios(reports, RAW, "png", 32)
    assert [(each["ours"], each["best_peer"], each["of"]) for each in found] == [
        ("ign as it comes", "mosec ×2", "all peers"),
        ("ign ×1", "mosec ×1", "peers with as many processes"),
        ("ign ×2", "mosec ×2", "peers with as many processes"),
        ("ign ×2", "mosec ×2", "the best of all"),
    ]
    assert [each["requests_per_s_ratio"] for each in found] == [0.5625, 1.5, 1.5, 1.5]
    assert [each["p99_ratio"] for each in found[1:]] == [2, 1, 1]


def test_ratios_are_of_rounds_not_of_medians() -> None:
    """The machine slowed down in another round for each: their medians would say 1."""
    reports = {OURS: [turn(300), turn(200), turn(100)], MOSEC: [turn(100), turn(100), turn(300)]}
    (first, _) = compare.ratios(reports, {1: [1000.0, 1000.0, 1000.0]}, "png", 32)
    assert first["requests_per_s_ratio"] == 2


def test_where_the_best_peer_leaves_no_room_both_shares_say_so() -> None:
    reports = {OURS: [turn(900)], MOSEC: [turn(700)]}
    found = compare.ratios(reports, {1: [1000.0]}, "png", 32)
    assert (found[0]["share_of_raw_ours"], found[0]["share_of_raw_best_peer"]) == (0.9, 0.7)
    assert not found[0]["reachable"]
    assert compare.ratios(reports, {1: [1100.0]}, "png", 32)[0]["reachable"]


def test_targets_are_of_pictures_and_the_best_of_all(reports: dict[Entry, list[Json]]) -> None:
    ratios = compare.ratios(reports, RAW, "png", 32)
    rate, slowest = compare.targets(ratios)
    assert (rate["measured"], rate["bound"], rate["met"]) == (1.5, 1.5, True)
    assert (slowest["measured"], slowest["bound"], slowest["met"]) == (1.0, 1.0, True)
    assert not list(compare.targets([each | {"payload": "raw"} for each in ratios]))


def test_without_peers_or_without_ours_there_is_nothing_to_compare() -> None:
    assert compare.ratios({OURS: [turn(10)]}, {1: [10.0]}, "png", 32) == []
    assert compare.ratios({RAY: [turn(10)]}, {1: [10.0]}, "png", 32) == []


def test_lines_and_ratios_are_records_that_make_tables(reports: dict[Entry, list[Json]]) -> None:
    lines = [{"entry": str(entry)} | line for entry, line in compare.lines(reports, RAW, "png", 32).items()]
    for records in (lines, compare.ratios(reports, RAW, "png", 32)):
        assert all(value == value and not isinstance(value, dict) for record in records for value in record.values())
        assert tables.table(records).count("\n") == len(records) + 1
