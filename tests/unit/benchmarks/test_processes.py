import os
import subprocess
import sys

import pytest

from benchmarks.harness import processes

FILES = """
import http.server, sys
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""


@pytest.mark.slow
def test_a_server_is_started_awaited_and_stopped() -> None:
    port = processes.free_port()
    with processes.serving([sys.executable, "-c", FILES, str(port)], port=port, ready="/README.md") as server:
        assert server.get("/README.md")[0] == 200
        assert server.get("/nothing")[0] == 404
        assert processes.rss_mib(server.pid) > 1
        assert "GET /nothing" in server.log_text()
    assert server.status == -15
    with pytest.raises(OSError, match="refused"):
        server.get("/")


@pytest.mark.slow
def test_a_server_that_ends_says_why() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no')"]
    with (
        pytest.raises(processes.ServerFailed, match=r"(?s)status 1.*no"),
        processes.serving(command, port=processes.free_port(), ready="/"),
    ):
        raise AssertionError


@pytest.mark.slow
def test_a_server_that_is_never_ready_is_given_up() -> None:
    command = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    with (
        pytest.raises(processes.ServerFailed, match="not ready within"),
        processes.serving(command, port=processes.free_port(), ready="/", start_s=0.3),
    ):
        raise AssertionError


@pytest.mark.slow
def test_a_bad_setting_is_told() -> None:
    with pytest.raises(processes.ServerFailed, match="IGN_THREADS"), processes.service({"IGN_THREADS": "no"}):
        raise AssertionError


@pytest.mark.slow
def test_cpu_time_and_memory_include_descendants() -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True); input()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        parent, descendant = processes.process_tree(child.pid)
        assert parent == child.pid
        # A lower bound only: how much more a process uses depends on the machine.
        assert processes.cpu_seconds(child.pid) >= processes.cpu_seconds(descendant) >= 0.25
        assert processes.rss_mib(child.pid) > processes.rss_mib(descendant) > 0
        child.communicate("")
    assert processes.cpu_seconds(child.pid) == processes.rss_mib(child.pid) == 0


def test_memory_is_sampled() -> None:
    with processes.MemoryWatch(os.getpid(), every_s=0.001) as watch:
        while len(watch.samples) < 3:
            pass
    times = [seconds for seconds, _ in watch.samples]
    assert times == sorted(times)
    assert all(mib > 1 for _, mib in watch.samples)
