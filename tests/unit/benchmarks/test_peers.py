import asyncio
import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import bench_peers
from benchmarks.harness.common import Json
from benchmarks.harness.processes import ROOT
from benchmarks.harness.tables import render
from benchmarks.peers import compare, environments, payloads, servers
from benchmarks.peers.one_run import Order, Refused, first_accepted, run_in_subprocess
from benchmarks.peers.one_run import compare as compare_answers
from benchmarks.peers.payloads import PNG, RAW
from benchmarks.peers.servers import OURS, Batching, Entry, ServerSpec
from service.settings import load_settings
from tests.unit.benchmarks.fake_server import Seen, fake_server

DEFAULT, OURS_1, OURS_2 = (Entry(name=OURS, processes=number) for number in (0, 1, 2))
MOSEC_1, MOSEC_2, RAY = (
    Entry(name="mosec", processes=1),
    Entry(name="mosec", processes=2),
    Entry(name="ray", processes=1),
)
RAW_RATES = {1: [2000.0, 1000.0, 2000.0], 2: [4000.0, 2000.0, 4000.0]}


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


def rounds(*measured: tuple[float, float]) -> list[Json]:
    return [{"loads": {"png": {"32": load(rate, p99)}}} for rate, p99 in measured]


@pytest.fixture
def reports() -> dict[Entry, list[Json]]:
    """Three rounds; in the second the machine runs at half its speed."""
    return {
        DEFAULT: rounds((900, 20), (450, 40), (900, 20)),
        OURS_1: rounds((1500, 20), (750, 40), (1500, 20)),
        OURS_2: rounds((2400, 12), (1200, 24), (2400, 12)),
        MOSEC_1: rounds((1000, 10), (500, 20), (1000, 10)),
        MOSEC_2: rounds((1600, 12), (800, 24), (1600, 12)),
        RAY: rounds((100, 90), (50, 180), (100, 90)),
    }


def test_a_line_has_medians_spread_and_the_share_of_raw(reports: dict[Entry, list[Json]]) -> None:
    table = compare.lines(reports, RAW_RATES, "png", 32)
    line = table[OURS_1]
    assert (line["requests_per_s"], line["requests_per_s_least"], line["requests_per_s_most"]) == (1500, 750, 1500)
    assert (line["p50_ms"], line["p99_ms"], line["p999_ms"]) == (10, 20, 40)
    assert [table[entry]["share_of_raw"] for entry in (OURS_1, OURS_2, DEFAULT)] == [0.75, 0.6, 0.45]


def test_failures_are_summed_over_the_rounds() -> None:
    found = [load(10, statuses={"200": 90, "503": 10}, errors=1), load(10, statuses={"200": 99, "429": 1}, errors=2)]
    assert compare.line(found, [10, 10])["not_200"] == 14


def test_the_best_peer_has_as_many_processes(reports: dict[Entry, list[Json]]) -> None:
    found = compare.ratios(reports, RAW_RATES, "png", 32)
    assert [(each["ours"], each["best_peer"], each["requests_per_s_ratio"]) for each in found] == [
        ("ign as it comes", "mosec ×2", 0.5625),
        ("ign ×1", "mosec ×1", 1.5),
        ("ign ×2", "mosec ×2", 1.5),
        ("ign ×2", "mosec ×2", 1.5),  # the best of all
    ]
    assert [(line["measured"], line["met"]) for line in compare.targets(found)] == [(1.5, True), (1.0, True)]


def test_ratios_are_of_rounds_not_of_medians() -> None:
    """The ratios of the rounds are 2, 0.5 and 2; the ratio of the medians is 200 / 300."""
    found = {OURS_1: rounds((200, 1), (200, 1), (600, 1)), MOSEC_1: rounds((100, 1), (400, 1), (300, 1))}
    (first, _) = compare.ratios(found, {1: [1000.0, 1000.0, 1000.0]}, "png", 32)
    assert first["requests_per_s_ratio"] == 2


def png(level: int, *, compress_level: int = 1) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (28, 28), level).save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def test_answers_must_have_the_same_pixels() -> None:
    compare_answers(PNG, [png(3, compress_level=9)], [png(3, compress_level=1)])
    with pytest.raises(Refused, match="png 1"):
        compare_answers(PNG, [png(3), png(4)], [png(3), png(3)])


def test_answers_must_have_the_same_floats_except_for_the_last_bits() -> None:
    row = np.linspace(-1, 1, 784, dtype=np.float32)
    compare_answers(RAW, [(row + np.float32(1e-6)).tobytes()], [row.tobytes()])
    for other in (row + np.float32(1e-4), row[:-1], np.where(row > 0.9, np.nan, row)):
        with pytest.raises(Refused, match="raw 0"):
            compare_answers(RAW, [other.astype(np.float32).tobytes()], [row.tobytes()])


@pytest.mark.parametrize(("answered", "requests"), [(b"/two", 2), (b"/one", 3)])
def test_the_first_protocol_that_is_answered_is_used(answered: bytes, requests: int) -> None:
    """At first neither is, while the server is not ready."""

    async def reply(seen: Seen, writer: asyncio.StreamWriter) -> None:
        found = answered in seen.requests[-1] and len(seen.requests) >= requests
        status = b"200 OK" if found else b"404 Not Found"
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\nok" % status)

    protocols = [payloads.raw_body(path, "text/plain") for path in ("/one", "/two")]
    with fake_server(reply) as seen:
        used = first_accepted(protocols, seen.port, b"x", timeout_s=60)
    assert answered.decode() in used.title
    assert len(seen.requests) == requests


BODY = np.arange(784, dtype="<f4").tobytes()


@pytest.mark.parametrize(
    ("protocol", "answer"),
    [
        (payloads.json_list("/predict", "bodies"), lambda sent: sent["bodies"]),
        (payloads.v2_base64("f"), lambda sent: {"outputs": [{"data": sent["inputs"][0]["data"]}]}),
    ],
)
def test_json_protocols_carry_a_body_both_ways(protocol: payloads.Protocol, answer: Callable[[Json], object]) -> None:
    _, _, sent = protocol.encode(BODY).partition(b"\r\n\r\n")
    assert protocol.decode({}, json.dumps(answer(json.loads(sent))).encode()) == BODY


@pytest.mark.parametrize(("processes", "workers", "threads"), [(0, 1, 0), (1, 1, 1), (2, 2, 2)])
def test_this_service_has_one_thread_per_process(processes: int, workers: int, threads: int) -> None:
    entry = Entry(name=OURS, processes=processes)
    environ = servers.environment(entry, Batching(rows=64, wait_ms=0), 8000, ROOT / "models", "mnist/3")
    settings = load_settings(environ)
    assert (settings.workers, settings.threads, settings.port) == (workers, threads, 8000)
    assert not settings.access_log  # no peer writes one


def in_base64(found: Mapping[str, Sequence[bytes]]) -> dict[str, list[str]]:
    return {payload: [base64.b64encode(body).decode() for body in each] for payload, each in found.items()}


@pytest.fixture
def order() -> Order:
    noise = np.random.default_rng(0).standard_normal((4, 1, 28, 28), dtype=np.float32)
    cpus = sorted(os.sched_getaffinity(0))
    return Order(
        name="fastapi",
        processes=1,
        rows=16,
        wait_ms=0,
        python=sys.executable,
        models=str(ROOT / "models"),
        model="mnist/3",
        bodies=in_base64({PNG: [png(level) for level in (0, 100)], RAW: [row.tobytes() for row in noise]}),
        expected={},
        connections=[4],
        seconds=0.3,
        warmup_s=0.1,
        server_cpus=cpus,
        client_cpus=cpus,
    )


@pytest.mark.slow
def test_plain_fastapi_gives_the_answers_of_this_service(order: Order) -> None:
    ours = run_in_subprocess(replace(order, name=OURS, connections=[]))
    assert ours.get("failed") is None
    report = run_in_subprocess(replace(order, expected=ours["answers"]))
    assert report.get("failed") is None
    for payload in (PNG, RAW):
        found = report["loads"][payload]["4"]
        assert list(found["statuses"]) == ["200"]
        assert found["ok_per_s"] > 0
    other = {PNG: ours["answers"][PNG][::-1], RAW: ours["answers"][RAW]}
    assert "failed" in run_in_subprocess(replace(order, expected=other))


@pytest.mark.slow
def test_a_server_that_does_not_start_fails(order: Order) -> None:
    assert "failed" in run_in_subprocess(replace(order, models="nowhere"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--environments", str(ROOT / "runs")], ["--model", "none/1"], ["--rounds", "0"]])
def test_a_bad_option_is_an_error(options: list[str], tmp_path: Path) -> None:
    results = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.bench_peers", "--quick", "--results", str(results)]
    given = [] if "--environments" in options else ["--environments", str(tmp_path)]
    done = subprocess.run([*command, *given, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert not results.exists()


@pytest.mark.slow
def test_the_benchmark_runs_and_skips_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI runs in this environment; mosec is not installed."""

    def environment(server_spec: ServerSpec, folder: Path) -> environments.Environment:
        if server_spec.name == "mosec":
            raise environments.NotInstalled("no such package")
        return environments.Environment(python=sys.executable, versions={})

    monkeypatch.setattr(environments, "environment", environment)
    results = tmp_path / "found.json"
    argv = ["bench_peers", "--quick", "--seconds", "0.3", "--connections", "4", "--bodies", "2", "--tune-s", "0.1"]
    monkeypatch.setattr(
        sys, "argv", [*argv, "--only", "fastapi", "mosec", "--environments", str(tmp_path), "--results", str(results)]
    )
    assert bench_peers.main() == 0
    found = json.loads(results.read_text(encoding="utf-8"))
    assert list(found["skipped"]) == ["mosec"]
    assert {line["entry"] for line in found["png_at_4_connections"]} == {"ign as it comes", "ign ×1", "fastapi ×1"}
    assert {each["best_peer"] for each in found["ratios"]} == {"fastapi ×1"}
    assert str(tmp_path) not in results.read_text(encoding="utf-8")
    assert render(found).count("\n| ---") == 4
