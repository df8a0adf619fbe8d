"""The medians of all rounds per entry, and the ratios to the best peer."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.harness.common import Json, median_ratio, rounded, target
from benchmarks.peers.servers import OURS, Entry

RATE: Final = 1.5  # requests/s of ours over those of the best peer
SHARE: Final = 0.67  # of raw onnxruntime; if a peer has more, `RATE` cannot be reached

Reports = Mapping[Entry, Sequence[Json]]  # one report per round


def lines(reports: Reports, raw: Mapping[int, Sequence[float]], payload: str, connections: int) -> dict[Entry, Json]:
    """One load of each entry: medians over the rounds, and the sum of the failures.

    Args:
        reports: all rounds in the same order; each load has answers with 200.
        raw: rows/s of raw onnxruntime by number of processes, one value per round.
        payload, connections: the load.
    """
    return {
        entry: line(loads(result, payload, connections), raw[max(1, entry.processes)])
        for entry, result in reports.items()
    }


def loads(reports: Sequence[Json], payload: str, connections: int) -> list[Json]:
    """The reports of one load, one per round."""
    return [report["loads"][payload][str(connections)] for report in reports]


def line(rounds: Sequence[Json], raw: Sequence[float]) -> Json:
    """The record of one entry."""

    def middle(loads: Sequence[Json], name: str) -> Any:
        return rounded(float(statistics.median(load[name] for load in loads)))

    answered = [load["ok"] for load in rounds]
    rates = [load["ok_per_s"] for load in rounds]
    result = {"requests_per_s": middle(rounds, "ok_per_s")}
    result |= {"requests_per_s_least": min(rates), "requests_per_s_most": max(rates)}
    result |= {name: middle(answered, name) for name in ("p50_ms", "p99_ms", "p999_ms")}
    result |= {name: middle(rounds, name) for name in ("server_core_ms_per_request", "client_core_ms_per_request")}
    result["share_of_raw"] = rounded(median_ratio(rates, raw))
    unanswered = sum(load["unanswered"] + sum(load["errors"].values()) for load in rounds)
    result["not_200"] = unanswered + sum(count for status, count in statuses(rounds).items() if status != "200")
    return result


def statuses(rounds: Sequence[Json]) -> dict[str, int]:
    """The number of answers by status."""
    result: dict[str, int] = {}
    for load in rounds:
        for status, latency in load["statuses"].items():
            result[status] = result.get(status, 0) + latency["count"]
    return result


def ratios(reports: Reports, raw: Mapping[int, Sequence[float]], payload: str, connections: int) -> list[Json]:
    """Each entry of this service beside the best peer with as many processes; with its default settings, beside all."""
    table = lines(reports, raw, payload, connections)
    peers = [entry for entry in table if entry.name != OURS]

    def rate_of(entry: Entry) -> float:
        return float(table[entry]["requests_per_s"])

    result = []
    for ours in (entry for entry in table if entry.name == OURS):
        rivals = [peer for peer in peers if ours.processes in (0, peer.processes)]
        if rivals:
            best = max(rivals, key=rate_of)
            result.append(ratio(ours, best, reports, table, payload, connections))
    if peers and len(peers) < len(table):
        overall = max(table.keys() - set(peers), key=rate_of)
        best = max(peers, key=rate_of)
        result.append(ratio(overall, best, reports, table, payload, connections) | {"of": "the best of all"})
    return result


def ratio(
    ours: Entry, best: Entry, reports: Reports, table: Mapping[Entry, Json], payload: str, connections: int
) -> Json:
    """One entry of this service over one peer, round by round."""
    own, other = loads(reports[ours], payload, connections), loads(reports[best], payload, connections)
    rate = median_ratio(*([load["ok_per_s"] for load in each] for each in (own, other)))
    slowest = median_ratio(*([load["ok"]["p99_ms"] for load in each] for each in (own, other)))
    return {
        "payload": payload,
        "connections": connections,
        "ours": str(ours),
        "best_peer": str(best),
        "of": "peers with as many processes" if ours.processes else "all peers",
        "requests_per_s_ratio": rounded(rate),
        "p99_ratio": rounded(slowest),
        "share_of_raw_ours": table[ours]["share_of_raw"],
        "share_of_raw_best_peer": table[best]["share_of_raw"],
        "reachable": table[best]["share_of_raw"] <= SHARE,
    }


def targets(result: Sequence[Json]) -> Iterator[Json]:
    """The targets for single images: more requests per second, and a p99 that is not higher."""
    for each in result:
        if each["payload"] == "png" and each["of"] == "the best of all":
            where = f"png, {each['connections']} connections: {each['ours']} over {each['best_peer']}"
            yield target(f"{where}, requests/s", each["requests_per_s_ratio"], at_least=RATE)
            yield target(f"{where}, p99", each["p99_ratio"], at_most=1.0)
