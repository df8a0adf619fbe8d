"""A real haproxy that balances connections, not requests, in front of services, as a Service of
Kubernetes does.
"""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.harness import write_models
from tests.helpers.live import ROOT, free_port, live_service, until

pytestmark = pytest.mark.skipif(
    not shutil.which("haproxy"), reason="needs haproxy: .ci/tools installs it on Debian"
)
CALLERS = 12
WINDOW_S = 3.0
CONFIGURATION = """
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
  retries 3
  option redispatch
listen ign
  bind 127.0.0.1:{port}
  balance roundrobin
  option httpchk GET /readyz
{servers}
"""


@contextmanager
def balanced(folder: Path, ports: list[int]) -> Iterator[str]:
    """haproxy on a free port, with probes of readiness; yields its URL."""
    port = free_port()
    servers = "\n".join(
        f"  server s{each} 127.0.0.1:{each} check inter 200ms fall 1 rise 1" for each in ports
    )
    (folder / "haproxy.cfg").write_text(CONFIGURATION.format(port=port, servers=servers))
    process = subprocess.Popen(
        ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(url), lambda: "haproxy does not serve")
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


class Callers:
    """Clients that keep their connection, and call one request after another; `failed` has what was
    lost.
    """

    def __init__(self, url: str) -> None:
        self.answered: list[int] = []
        self.failed: list[str] = []
        self._url, self._over, self._pool = url, threading.Event(), ThreadPoolExecutor(CALLERS)

    def __enter__(self) -> "Callers":
        self._running = [self._pool.submit(self._call, number) for number in range(CALLERS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown()

    def _call(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=60.0, trust_env=False) as client:
            while not self._over.wait(0.01):
                try:
                    response = client.post("/generate", json={"seed": number})
                    response.raise_for_status()
                    assert response.json()["images"]
                    self.answered.append(number)
                except Exception as exc:  # whatever it is, a caller has noticed it
                    self.failed.append(repr(exc))


def served(port: int) -> float:
    """Answers to /generate of one service."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30.0).text
    samples = [
        sample for family in text_string_to_metric_families(text) for sample in family.samples
    ]
    return sum(
        each.value
        for each in samples
        if each.name == "ign_requests_total"
        and each.labels["endpoint"] == "/generate"
        and each.labels["status"] == "2xx"
    )


def share(ports: list[int], of: int) -> float:
    """The share of one service in the answers of a few seconds."""
    before = {port: served(port) for port in ports}
    time.sleep(WINDOW_S)
    after = {port: served(port) - before[port] for port in ports}
    return after[of] / max(1.0, sum(after.values()))


@pytest.mark.parametrize(("age", "is_relieved"), [("2", True), ("0", False)])
def test_a_third_service_gets_its_share_of_callers_that_keep_their_connection(
    tmp_path: Path, age: str, *, is_relieved: bool
) -> None:
    models = write_models(tmp_path / "models")
    ports = [free_port() for _ in range(3)]
    settings = {
        "IGN_MODEL_DIR": str(models),
        "IGN_DEFAULT_MODEL": "grey",
        "IGN_DEVICE": "cpu",
        "IGN_THREADS": "1",
    }
    settings |= {"IGN_MAX_CONNECTION_AGE_S": age, "IGN_ACCESS_LOG": "0"}
    with ExitStack() as stack:
        for port in ports[:2]:
            stack.enter_context(live_service(**settings, IGN_PORT=str(port)))
        url = stack.enter_context(balanced(tmp_path, ports))
        callers = stack.enter_context(Callers(url))
        until(lambda: len(callers.answered) > CALLERS, lambda: callers.failed)
        stack.enter_context(live_service(**settings, IGN_PORT=str(ports[2])))
        if is_relieved:
            until(
                lambda: share(ports, ports[2]) >= 0.2, lambda: "the third service gets too little"
            )
        else:
            assert share(ports, ports[2]) == 0
        callers.__exit__()
        assert callers.failed == []
        answered = len(callers.answered)  # /metrics may be a second old
        until(
            lambda: sum(map(served, ports)) == answered, lambda: (answered, [*map(served, ports)])
        )


@pytest.fixture
def previous(tmp_path: Path) -> Iterator[Path]:
    """The commit before this one, in a folder of its own."""
    folder = tmp_path / "previous"
    git = ["git", "-C", str(ROOT), "worktree"]
    added = subprocess.run(
        [*git, "add", "--detach", folder, "HEAD^"], capture_output=True, text=True, check=False
    )
    if added.returncode:
        pytest.skip(f"there is no commit before this one here: {added.stderr.strip()}")
    yield folder
    subprocess.run([*git, "remove", "--force", folder], capture_output=True, check=False)


def test_an_upgrade_from_the_previous_commit_under_load_loses_nothing(
    tmp_path: Path, previous: Path
) -> None:
    models = write_models(tmp_path / "models")
    ports = [free_port() for _ in range(3)]
    settings = {
        "IGN_MODEL_DIR": str(models),
        "IGN_DEFAULT_MODEL": "grey",
        "IGN_DEVICE": "cpu",
        "IGN_THREADS": "1",
    }
    settings |= {"IGN_DRAIN_DELAY_S": "2", "IGN_MAX_CONNECTION_AGE_S": "1", "IGN_ACCESS_LOG": "0"}

    def start(port: int, folder: Path) -> ExitStack:
        stack = ExitStack()
        code = {"PYTHONPATH": f"{folder}:{folder / 'sdk'}"}
        command = (sys.executable, "-m", "service")
        stack.enter_context(
            live_service(*command, cwd=str(folder), **settings, **code, IGN_PORT=str(port))
        )
        return stack

    def goes_on(callers: Callers, port: int) -> None:
        """Wait until callers have more responses of this service."""
        before = served(port)
        until(lambda: served(port) > before + CALLERS, lambda: callers.failed)

    with ExitStack() as stack:
        first, second = (stack.enter_context(start(port, previous)) for port in ports[:2])
        callers = stack.enter_context(Callers(stack.enter_context(balanced(tmp_path, ports))))
        stack.enter_context(start(ports[2], ROOT))
        goes_on(callers, ports[2])
        first.close()
        stack.enter_context(start(ports[0], ROOT))
        goes_on(callers, ports[0])
        second.close()
        goes_on(callers, ports[2])
        callers.__exit__()
    assert callers.failed == []
