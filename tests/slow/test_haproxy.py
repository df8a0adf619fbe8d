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
from tests.helpers.live import ROOT, free_port, live_service, run, until

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


def serving_grey(folder: Path) -> dict[str, str]:
    models = write_models(folder / "models")
    settings = {"IGN_MODEL_DIR": str(models), "IGN_DEFAULT_MODEL": "grey", "IGN_ACCESS_LOG": "0"}
    return settings | {"IGN_DEVICE": "cpu", "IGN_THREADS": "1"}


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
            while not self._over.wait(0.05):
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
    wanted = {"endpoint": "/generate", "status": "2xx"}.items()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "ign_requests_total" and wanted <= sample.labels.items()
    )


def share(ports: list[int], of: int) -> float:
    """The share of one service in the answers of a few seconds."""
    before = {port: served(port) for port in ports}
    time.sleep(WINDOW_S)
    after = {port: served(port) - before[port] for port in ports}
    return after[of] / max(1.0, sum(after.values()))


def test_a_third_service_gets_its_share_of_callers_that_keep_their_connection(
    tmp_path: Path,
) -> None:
    ports = [free_port() for _ in range(3)]
    settings = serving_grey(tmp_path) | {"IGN_MAX_CONNECTION_AGE_S": "2"}
    with ExitStack() as stack:
        for port in ports[:2]:
            stack.enter_context(live_service(**settings, IGN_PORT=str(port)))
        callers = stack.enter_context(Callers(stack.enter_context(balanced(tmp_path, ports))))
        until(lambda: len(callers.answered) > CALLERS, lambda: callers.failed)
        stack.enter_context(live_service(**settings, IGN_PORT=str(ports[2])))
        until(lambda: share(ports, ports[2]) >= 0.2, lambda: "the third service gets too little")
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
    added = run(*git, "add", "--detach", folder, "HEAD^")
    if added.returncode:
        pytest.skip(f"there is no commit before this one here: {added.stderr.strip()}")
    yield folder
    run(*git, "remove", "--force", folder)


def test_an_upgrade_from_the_previous_commit_under_load_loses_nothing(
    tmp_path: Path, previous: Path
) -> None:
    ports = [free_port() for _ in range(3)]
    settings = serving_grey(tmp_path)
    settings |= {"IGN_DRAIN_DELAY_S": "5", "IGN_MAX_CONNECTION_AGE_S": "1"}

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
