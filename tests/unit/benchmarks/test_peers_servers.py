import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench_peers
from benchmarks.harness.processes import ROOT
from benchmarks.harness.tables import render
from benchmarks.peers import environments, servers
from benchmarks.peers.servers import OURS, PEERS, Batching, Contestant, Entry
from service.settings import load_settings

FOLDER = ROOT / "benchmarks" / "peers"
ALIKE = {"numpy", "onnxruntime", "PIL", "benchmarks"}
FRONTS = {"fastapi": {"fastapi", "uvicorn"}, "litserve": {"fastapi"}, "ray": {"starlette"}}


def source(peer: Contestant) -> str:
    return (FOLDER / f"{peer.module}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_is_one_file_that_imports_its_system_alone_and_says_where_its_settings_are_from(
    peer: Contestant,
) -> None:
    tree = ast.parse(source(peer))
    imported = {
        (node.module or "" if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported - sys.stdlib_module_names <= ALIKE | {peer.name} | FRONTS.get(peer.name, set())
    assert "https://" in (ast.get_docstring(tree) or "")


def test_every_server_is_a_contestant() -> None:
    assert {file.stem for file in FOLDER.glob("*_server.py")} == {peer.module for peer in PEERS}


def test_entries_are_every_contestant_with_every_number_and_this_service_as_it_comes() -> None:
    names = [str(entry) for entry in servers.entries([OURS, "mosec"], [1, 2])]
    assert names == ["ign as it comes", "ign ×1", "ign ×2", "mosec ×1", "mosec ×2"]


@pytest.mark.parametrize(("processes", "workers", "threads"), [(0, 1, 0), (1, 1, 1), (2, 2, 2)])
def test_this_service_has_one_thread_for_each_process(processes: int, workers: int, threads: int) -> None:
    entry = Entry(name=OURS, processes=processes)
    environ = servers.environment(entry, Batching(rows=64, wait_ms=0), 8000, ROOT / "models", "mnist/1")
    settings = load_settings(environ)
    assert (settings.workers, settings.threads, settings.port) == (workers, threads, 8000)
    assert settings.access_log == (processes == 0)


def test_a_peer_is_told_what_it_is_to_do() -> None:
    batching = Batching(rows=16, wait_ms=2)
    environ = servers.environment(Entry(name="ray", processes=2), batching, 8001, Path("models"), "mnist/1")
    assert environ["PEER_MODEL"] == "models/mnist/1/model.onnx"
    assert (environ["PEER_PORT"], environ["PEER_PROCESSES"]) == ("8001", "2")
    assert (environ["PEER_MAX_BATCH"], environ["PEER_WAIT_MS"]) == ("16", "2")
    assert environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


def test_all_run_the_same_onnxruntime() -> None:
    for peer in PEERS:
        assert any(each.startswith("onnxruntime==") for each in environments.requirements(peer))


def test_a_finished_environment_is_not_made_again(tmp_path: Path) -> None:
    peer = servers.ALL["fastapi"]
    place = tmp_path / peer.name
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(sys.executable)
    (place / "installed.json").write_text(json.dumps(environments.requirements(peer)))
    found = environments.environment(peer, tmp_path)
    assert found.python == str(place / "bin" / "python")


def test_what_pip_cannot_install_is_said(tmp_path: Path) -> None:
    nonsense = Contestant(name="none", module="none", ready="/", wires={}, packages=("not a requirement",))
    with pytest.raises(environments.NotInstalled, match="Invalid requirement"):
        environments.environment(nonsense, tmp_path)


def test_cpus_are_shared_where_there_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert bench_peers.cpus(None) == ([0, 1], [0, 1])
    assert bench_peers.cpus(1) == ([0], [1])
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert bench_peers.cpus(None) == ([0, 1, 2, 3, 4, 5], [6, 7])


def test_reasons_are_published_on_a_line_and_without_directories() -> None:
    text = 'ended:\n  File "/tmp/tmpx1/a.py", line 1\ncannot open /home/me/x.py; 404 to POST /v2/models/f/infer'
    assert bench_peers.without_paths(text) == (
        'ended: File "a.py", line 1 cannot open x.py; 404 to POST /v2/models/f/infer'
    )
    long = bench_peers.without_paths("begin " + "x " * 1000 + "end")
    assert len(long) < 700
    assert long.startswith("begin")
    assert long.endswith("end")


@pytest.mark.parametrize(
    "options", [["--environments", str(ROOT / "runs")], ["--model", "none/1"], ["--only", "nobody"], ["--rounds", "0"]]
)
def test_a_bad_option_is_told_in_a_line(options: list[str], tmp_path: Path) -> None:
    results = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.bench_peers", "--quick", "--results", str(results)]
    given = [] if "--environments" in options else ["--environments", str(tmp_path)]
    done = subprocess.run([*command, *given, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not results.exists()


@pytest.mark.slow
def test_the_benchmark_runs_and_leaves_out_what_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With plain FastAPI in this very environment, and a peer that is not installed."""

    def environment(contestant: Contestant, folder: Path) -> environments.Environment:
        if contestant.name == "mosec":
            raise environments.NotInstalled("`pip install …`: no such thing")
        return environments.Environment(python=sys.executable, versions={})

    monkeypatch.setattr(environments, "environment", environment)
    results = tmp_path / "found.json"
    argv = ["bench_peers", "--quick", "--seconds", "0.3", "--connections", "4", "--bodies", "2", "--tune-s", "0.1"]
    monkeypatch.setattr(
        sys, "argv", [*argv, "--only", "fastapi", "mosec", "--environments", str(tmp_path), "--results", str(results)]
    )
    assert bench_peers.main() == 0
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["skipped"] == {"mosec": "cannot be installed: `pip install …`: no such thing"}
    entries = {line["entry"] for line in found["png_at_4_connections"]}
    assert entries == {"ign as it comes", "ign ×1", "fastapi ×1"}
    assert {each["best_peer"] for each in found["ratios"]} == {"fastapi ×1"}
    assert len(found["tuned_requests_per_s"]["fastapi ×1"]) == 2
    assert len(found["targets"]) == 2
    assert str(tmp_path) not in results.read_text(encoding="utf-8")
    assert render(found).count("\n| ---") == 4
    assert "skipped: mosec" in capsys.readouterr().err
