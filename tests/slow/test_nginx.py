"""`docker/nginx/nginx.conf` in a real nginx, in front of the service and of upstreams that fail."""

import json
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ign_client import Client, Done, Step, TooManyRequests
from ign_client import TooLarge as TooLargeAnswer
from tests.contract.harness import bearer, write_keys
from tests.helpers.live import ROOT, SHIPPED, certificate, free_port, live_service, run, until

PATIENCE_S = 300.0
MAX_BODY = 16 * 2**20
# in place of those of the configuration: fewer sockets do the same
CALLER_LIMIT, ADDRESS_LIMIT, MOST_HELD = (4, 6, 50)

pytestmark = pytest.mark.skipif(
    not (shutil.which("nginx") and shutil.which("openssl") and shutil.which("curl")),
    reason="needs nginx 1.25.1 or newer, openssl and curl: .ci/tools installs them on Debian",
)


@dataclass(frozen=True)
class Front:
    """A running nginx."""

    address: tuple[str, int]
    folder: Path

    @property
    def url(self) -> str:
        return f"https://{self.address[0]}:{self.address[1]}"

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "tls.crt"))

    def client(self) -> httpx.Client:
        return httpx.Client(
            verify=self.trust, base_url=self.url, timeout=PATIENCE_S, trust_env=False
        )

    def connect(self) -> ssl.SSLSocket:
        raw = socket.create_connection(self.address, timeout=PATIENCE_S)
        return self.trust.wrap_socket(raw, server_hostname=self.address[0])

    def ask(self, request: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Status, headers and problem document of the answer to raw bytes."""
        with closing(self.connect()) as connection:
            connection.sendall(request)
            head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(
                b"\r\n\r\n"
            )
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        return int(first.split()[1]), headers, json.loads(body)

    def log(self, request_id: str) -> dict[str, Any]:
        """The line of the access log, which nginx writes after the response."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            entries = map(json.loads, (self.folder / "access.log").read_text().splitlines())
            found[:] = [entry for entry in entries if entry["request_id"] == request_id]
            return bool(found)

        until(look, lambda: "nginx did not log the request")
        return found[0]


def configuration(folder: Path, port: int, upstream: str, **changed: str) -> str:
    """The shipped configuration with the paths, ports and limits of a test, and directives
    ``changed``.
    """
    text = (ROOT / "docker" / "nginx" / "nginx.conf").read_text()
    limits = {"limit_conn callers": f"{CALLER_LIMIT}", "limit_conn addresses": f"{ADDRESS_LIMIT}"}
    for directive, value in {**limits, **changed}.items():
        text, count = re.subn(rf"(?m)^( *{directive}) [^;]*;", rf"\g<1> {value};", text)
        assert count, directive
    replaced = {
        "/tmp/": f"{folder}/",
        "/run/tls/": f"{folder}/",
        "/dev/stderr": f"{folder}/error.log",
        "/dev/stdout": f"{folder}/access.log",
        "listen 8443": f"listen 127.0.0.1:{port}",
        "server ign:8000": f"server {upstream}",
    }
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return text


@contextmanager
def front(folder: Path, upstream: str, **changed: str) -> Iterator[Front]:
    folder.mkdir()
    folder.chmod(0o755)
    certificate(folder)
    port = free_port()
    (folder / "nginx.conf").write_text(configuration(folder, port, upstream, **changed))
    # Started by root, its workers would otherwise be `nobody`, who cannot reach the folder.
    directives = "daemon off; user root;" if os.geteuid() == 0 else "daemon off;"
    command = [
        "nginx",
        "-c",
        str(folder / "nginx.conf"),
        "-e",
        str(folder / "error.log"),
        "-g",
        directives,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(
                lambda: listens(port) or process.poll() is not None, lambda: "nginx does not listen"
            )
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            yield Front(("127.0.0.1", port), folder)
        finally:
            process.terminate()
    assert process.returncode == 0


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """nginx in front of the service."""
    with (
        live_service() as url,
        front(tmp_path_factory.mktemp("nginx") / "front", str(httpx.URL(url).netloc, "ascii")) as n,
    ):
        yield n


def head(target: str, *lines: str, method: str = "GET") -> bytes:
    fixed = (f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close")
    return "\r\n".join((*fixed, *lines, "", "")).encode()


def check_problem(status: int, headers: dict[str, str], problem: dict[str, Any], code: str) -> None:
    """An answer of nginx is a problem document of the contract."""
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == problem["request_id"]
    assert (problem["status"], problem["code"], problem["type"]) == (status, code, "about:blank")
    assert problem["error"] == problem["detail"]
    assert problem["title"]
    assert ("retry-after" in headers) == (status in {429, 502, 503})


REFUSED = {
    "body too large": (
        413,
        "too_large",
        head("/generate", f"Content-Length: {MAX_BODY + 1}", method="POST"),
    ),
    "bad header": (400, "malformed", head("/generate", "Content-Length: many", method="POST")),
    "no host": (400, "malformed", b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"),
    "large header": (431, "head_too_large", head("/models", f"X-Large: {'x' * 20_000}")),
    "metrics": (404, "not_found", head("/metrics")),
    "trace": (405, "method_not_allowed", head("/models", method="TRACE")),
    "transfer encoding": (
        501,
        "not_supported",
        head("/generate", "Transfer-Encoding: gzip", method="POST"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nginx_refuses_is_a_problem_document(served: Front, name: str) -> None:
    status, code, request = REFUSED[name]
    answer = served.ask(request)
    assert answer[0] == status
    check_problem(*answer, code)


def test_without_the_service(tmp_path: Path) -> None:
    with (
        front(tmp_path / "front", f"127.0.0.1:{free_port()}") as unserved,
        unserved.client() as http,
    ):
        answer = http.get("/models", headers={"X-Request-ID": "mine-1"})
        assert answer.json()["request_id"] == "mine-1"
        check_problem(answer.status_code, dict(answer.headers), answer.json(), "bad_gateway")
        replaced = http.get("/models", headers={"X-Request-ID": "not valid"}).json()["request_id"]
        assert re.fullmatch("[0-9a-f]{32}", replaced)
        entry = unserved.log("mine-1")
        assert (entry["status"], entry["upstream_status"], entry["path"]) == (502, "502", "/models")


def test_an_upstream_that_never_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        upstream = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            front(tmp_path / "front", upstream, proxy_read_timeout="1s") as found,
            found.client() as http,
        ):
            answer = http.get("/models")
    assert answer.status_code == 504
    check_problem(504, dict(answer.headers), answer.json(), "gateway_timeout")


def test_the_client_works_through_nginx(served: Front) -> None:
    with served.client() as http, Client(served.url, http_client=http, max_retries=0) as client:
        assert len(client.generate(n=3, seed=7, request_id="through-nginx")) == 3
        events = list(client.stream_generate(n=1, seed=7, steps=3, record=[1]))
        assert isinstance(events[0], Step)
        assert isinstance(events[-1], Done)
        with pytest.raises(TooLargeAnswer) as refused:
            client.project([bytes(MAX_BODY)])
        assert refused.value.code == "too_large"
        assert http.get("/models").headers["strict-transport-security"]


def test_the_access_log_is_json_and_holds_no_key(served: Front) -> None:
    key = "a-key-that-nobody-may-read"
    headers = {"Authorization": f"Bearer {key}"}
    with served.client() as http:
        probe = http.get("/healthz", headers={"X-Request-ID": "probe"})
        assert probe.status_code == 200
        for path, name in (("/generate?x=hidden", "logged"), ("/generate", "logged-2")):
            own = headers | {"X-Request-ID": name}
            assert http.post(path, json={"seed": 7}, headers=own).json()["request_id"] == name
    entry = served.log("logged-2")
    said = {name: entry[name] for name in ("method", "path", "status", "address")}
    assert said == {"method": "POST", "path": "/generate", "status": 200, "address": "127.0.0.1"}
    assert entry["model"].startswith(f"{SHIPPED['mnist']}@")
    assert min(entry["seconds"], float(entry["upstream_seconds"])) >= 0
    text = (served.folder / "access.log").read_text()
    assert key not in text
    assert "hidden" not in text
    assert '"probe"' not in text


def test_http_2_and_plain_http(served: Front) -> None:
    (served.folder / "large").write_bytes(bytes(MAX_BODY + 1))
    curl = ("curl", "--http2", "--silent", "--noproxy", "*", "--cacert", served.folder / "tls.crt")
    large = (f"@{served.folder / 'large'}", "--header", "X-Request-ID: large")
    done = run(*curl, f"{served.url}/generate", "--data-binary", *large)
    assert json.loads(done.stdout)["code"] == "too_large"
    entry = served.log("large")
    assert (entry["protocol"], entry["method"]) == ("HTTP/2.0", "POST")
    with httpx.Client(trust_env=False) as http:
        plain = http.get(served.url.replace("https", "http"))
    check_problem(plain.status_code, dict(plain.headers), plain.json(), "malformed")


def hold(found: Front, stack: ExitStack, key: str) -> None:
    """Begin a request that stays: nginx counts it once its headers are complete."""
    connection = stack.enter_context(closing(found.connect()))
    authorization = [f"Authorization: Bearer {key}"] if key else []
    connection.sendall(head("/generate", "Content-Length: 10", *authorization, method="POST"))


def status(found: Front, key: str) -> int:
    with found.client() as http:
        return http.get(
            "/models", headers={"Authorization": f"Bearer {key}"} if key else {}
        ).status_code


def fill(found: Front, stack: ExitStack, keys: Iterable[str], probe: str) -> int:
    """Hold requests with these keys until ``probe`` is rejected; how many it took. nginx reads them
    with a delay.
    """
    for count, key in enumerate(keys, 1):
        hold(found, stack, key)
        if status(found, probe) == 429:
            return count
    raise AssertionError("nothing was rejected")


@pytest.mark.parametrize(
    ("keys", "probe", "limit", "others"),
    [
        (["alice"] * MOST_HELD, "alice", CALLER_LIMIT, ("bob", "")),
        # callers without a key are limited by address
        ([""] * MOST_HELD, "", CALLER_LIMIT, ("alice",)),
        # and many keys do not lift that limit
        ([f"{key}" for key in range(MOST_HELD)], "another", ADDRESS_LIMIT, ()),
    ],
)
def test_keys_and_addresses_have_limits(
    served: Front, keys: list[str], probe: str, limit: int, others: tuple[str, ...]
) -> None:
    with ExitStack() as stack:
        assert fill(served, stack, keys, probe) >= limit
        assert [status(served, other) for other in others] == [200] * len(others)
        with (
            served.client() as http,
            Client(served.url, api_key=probe, http_client=http, max_retries=0) as client,
            pytest.raises(TooManyRequests) as refused,
        ):
            client.generate(n=1)
    assert (refused.value.code, bool(refused.value.retry_after)) == ("rate_limited", True)


GETS = 2000
URLS = 100
CALLERS = CALLER_LIMIT - 1


def rows_run(service: str) -> int:
    """The rows that the model has run, as the service counts them."""
    models = httpx.get(f"{service}/v2/models/stats", trust_env=False).json()["model_stats"]
    return sum(int(model["inference_count"]) for model in models)


def test_images_by_url_are_made_once(tmp_path: Path) -> None:
    paths = [
        f"/generate/name-{i}.png?model={SHIPPED['mnist']}" if i % 2 else f"/generate?seed={i}"
        for i in range(URLS)
    ]

    def ask(caller: int) -> set[tuple[str, bytes]]:
        chosen = random.Random(caller)
        found = set()
        with cached.client() as http:
            for _ in range(-(-GETS // CALLERS)):
                path = chosen.choice(paths)
                found.add((path, http.get(path).raise_for_status().content))
        return found

    with (
        live_service() as url,
        front(tmp_path / "front", str(httpx.URL(url).netloc, "ascii")) as cached,
    ):
        before = rows_run(url)
        with ThreadPoolExecutor(CALLERS) as pool:
            found = set.union(*pool.map(ask, range(CALLERS)))
        assert len(found) == URLS
        assert rows_run(url) - before == URLS
        with cached.client() as http:
            first = http.get(paths[1], headers={"X-Request-ID": "one"})
            again = http.get(paths[1], headers={"X-Request-ID": "two"})
            assert [first.headers["X-Request-ID"], again.headers["X-Request-ID"]] == ["one", "two"]
            assert http.get("/generate").content != http.get("/generate").content  # no seed
            assert rows_run(url) - before == URLS + 2


def test_a_cached_image_is_for_its_key_alone(tmp_path: Path) -> None:
    keys = write_keys(tmp_path, {"alice": "infer"})
    with (
        live_service(IGN_API_KEYS_FILE=str(keys)) as url,
        front(tmp_path / "front", str(httpx.URL(url).netloc, "ascii")) as cached,
        cached.client() as http,
    ):
        sent = [bearer("alice"), bearer("alice"), {}, bearer("mallory")]
        statuses = [
            http.get("/generate/alice.png", headers=headers).status_code for headers in sent
        ]
        assert statuses == [200, 200, 401, 401]
