"""A day of a two-node Ray cluster, all of it on this machine: what happened is printed as JSON.

Ray opens ports on every address, so this is to be run in a network and process namespace of its
own:

    unshare -n -p -f --mount-proc bash -c 'ip link set lo up && python -m
    tests.slow.cluster.scenario'
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import ray
from ray import serve
from ray.cluster_utils import Cluster

from ign_client import Client
from service.cluster import DeploymentOptions, app
from tests.helpers import live

URL = "http://127.0.0.1:8000"
PATIENCE_S = 300.0
CALLERS = 8
# Every node has one CPU and every replica takes one, so two replicas are on two nodes.
OPTIONS = DeploymentOptions(
    min_replicas=1,
    max_replicas=2,
    target_ongoing_requests=4,
    max_ongoing_requests=64,
    upscale_delay_s=1,
    downscale_delay_s=2,
)
LONG_S = 10.0  # of a request that is in hand while its replica is told to go


class Load:
    """Callers that never rest: half of them the client with its retries, half without anything."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.client: Counter[str] = Counter()
        self.bare: Counter[str] = Counter()
        works = [(self._client, self.client), (self._bare, self.bare)]
        self.threads = [
            threading.Thread(target=self._repeat, args=works[n % 2]) for n in range(CALLERS)
        ]
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _repeat(self, work: Callable[[], str], outcomes: Counter[str]) -> None:
        while not self.stop.is_set():
            try:
                outcomes[work()] += 1
            except Exception as exc:
                outcomes[f"{type(exc).__name__}: {exc}"[:200]] += 1

    @staticmethod
    def _client() -> str:
        with Client(URL, timeout=60, max_retries=4) as client:
            client.generate(n=4, seed=7, steps=300)
        return "done"

    @staticmethod
    def _bare() -> str:
        response = httpx.post(f"{URL}/generate", json={"n": 4, "seed": 7, "steps": 300}, timeout=60)
        if response.status_code == 200:
            return "200"
        kind = response.headers.get("content-type", "")
        return (
            f"{response.status_code} "
            f"{response.json()['code'] if kind == 'application/problem+json' else kind}"
        )


def replicas() -> int:
    """Replicas that run."""
    applications = serve.status().applications
    deployments = applications["default"].deployments if "default" in applications else {}
    return int(deployments["ign"].replica_states.get("RUNNING", 0)) if "ign" in deployments else 0


def until(condition: Callable[[], object], what: str) -> None:
    live.until(condition, lambda: f"{what}; {serve.status()}", PATIENCE_S)


def until_replicas(count: int, what: str) -> int:
    until(lambda: replicas() == count, what)
    return count


def main() -> int:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    # One proxy alone: two on one machine would share the port, and the one of the node that is
    # killed its connections.
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": 8000})
    serve.run(app(OPTIONS), route_prefix="/")
    counts: list[int] = [replicas()]
    found: dict[str, Any] = {"responses": responses()}
    load = Load()
    counts.append(until_replicas(2, "a second replica under load"))
    cluster.remove_node(node, allow_graceful=False)
    counts.append(until_replicas(1, "the loss of a replica is noticed"))
    lost = sum(load.bare.values()) + CALLERS * 4
    until(lambda: sum(load.bare.values()) > lost, "the other replica goes on")
    cluster.add_node(num_cpus=1)
    counts.append(until_replicas(2, "a new node takes a replica"))
    # A node's processes may finish their requests before they notice. This one cannot.
    killed = min(processes())
    os.kill(killed, signal.SIGKILL)
    served = load.bare["200"] + CALLERS * 4
    until(lambda: load.bare["200"] > served, "the other replica goes on")
    # Else there could be one for want of the other, and not for want of work.
    until(lambda: len(processes() - {killed}) == 2, "another process takes its place")
    counts.append(until_replicas(2, "it serves"))
    found["scrapes"] = scrapes()
    load.end()
    found["counted"] = counted(load)
    counts.append(until_replicas(1, "back to one when idle"))
    found |= {"client": load.client, "bare": load.bare, "replicas": counts}
    found["after"] = responses()["generate"] == found["responses"]["generate"]
    found["cut"] = cut()
    until(lambda: responses()["readyz"] == 200, "another replica takes the place of the last one")
    found["drained"] = drained()
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def answered() -> float:
    """Responses to /generate that the replicas have counted."""
    text = httpx.get(f"{URL}/metrics", timeout=60).raise_for_status().text
    lines = [
        line
        for line in text.splitlines()
        if line.startswith('ign_requests_total{endpoint="/generate"')
    ]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def scrapes() -> list[float]:
    """What scrapes under load show in a row: each replica answers some of them."""
    found = []
    for _ in range(12):
        found.append(answered())
        time.sleep(0.3)
    return found


def counted(load: Load) -> dict[str, float]:
    """Responses of a calm minute, as callers and as scrapes count them."""
    settled = -1.0
    while settled != (settled := answered()):
        time.sleep(4.0)
    with ThreadPoolExecutor(CALLERS) as pool:
        each = pool.map(lambda _: load._bare(), range(200))
    got = sum(outcome == "200" for outcome in each)
    until(lambda: answered() - settled >= got, "scrapes show all responses")
    return {"callers": got, "scrapes": answered() - settled}


def long_stream() -> contextlib.AbstractContextManager[httpx.Response]:
    """A stream of about `LONG_S` seconds, whose first event comes at once."""
    steps = 50_000
    began = time.monotonic()
    httpx.post(f"{URL}/generate", json={"seed": 7, "steps": steps}, timeout=60)
    body = {"seed": 7, "steps": int(steps * LONG_S / (time.monotonic() - began)), "record": [0]}
    return httpx.stream(
        "POST", f"{URL}/generate", json=body, headers={"Accept": "text/event-stream"}, timeout=60
    )


def cut() -> str:
    """The last event of a stream whose replica is killed."""
    with long_stream() as response:
        lines = response.iter_lines()
        next(lines)
        for process in processes():
            os.kill(process, signal.SIGKILL)
        return [line for line in lines if line.startswith("event: ")][-1]


def drained() -> dict[str, Any]:
    """The last replica is told to go while it answers."""
    with ThreadPoolExecutor() as pool, long_stream() as response:
        lines = response.iter_lines()
        first = next(lines)
        rest = pool.submit(lambda: [line for line in lines if line.startswith("event: ")])
        gone = pool.submit(serve.delete, "default")
        until(lambda: replicas() == 0, "the replica is told to go")
        in_hand = not rest.done()
        gone.result()
        return {"first": first, "in_hand": in_hand, "last": rest.result()[-1]}


def processes() -> set[int]:
    """Those of replicas."""
    return live.processes(b"ServeReplica")


def responses() -> dict[str, Any]:
    with httpx.Client(base_url=URL, timeout=60) as client:
        made = client.post("/generate", json={"n": 2, "seed": 7})
        named = client.post("/generate", json={"seed": 7}, headers={"X-Request-ID": "mine"})
        bad = client.post("/generate", json={"n": 0})
        events = client.post(
            "/generate", json={"seed": 7, "steps": 50}, headers={"Accept": "text/event-stream"}
        )
        return {
            "readyz": client.get("/readyz").status_code,
            "generate": [image["data"] for image in made.json()["images"]],
            "request_ids": named.headers.get_list("x-request-id"),
            "bad": [
                bad.status_code,
                bad.json()["code"],
                bad.json()["request_id"] == bad.headers["x-request-id"],
            ],
            "events": [events.status_code, events.text.count("event: ")],
        }


if __name__ == "__main__":
    sys.exit(main())
