"""The service as a Ray Serve deployment: through the proxies, with a node and a replica killed
under load.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.lifespan.on import LifespanOn

from service.cluster import DeploymentOptions, Replica, ReplicaMetrics, proxy, replica_settings
from service.domain.errors import Draining, StartupError
from service.observability.shared import add_up
from tests.contract.harness import settings, write_models
from tests.helpers.live import run
from tests.slow.cluster.space import own_namespace

# On a cluster


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `tests.slow.cluster.scenario` saw."""
    within = own_namespace()
    models = write_models(tmp_path_factory.mktemp("models"))
    done = run(
        *within,
        sys.executable,
        "-m",
        "tests.slow.cluster.scenario",
        IGN_MODEL_DIR=str(models),
        IGN_DEFAULT_MODEL="grey",
        IGN_MAX_STEPS="1000000000",
        IGN_DRAIN_S="60",
        RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH="service.cluster.proxy",
        # Ray kills a proxy that is not ready in 5 s, which a busy machine needs to import all.
        RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="60",
        RAY_USAGE_STATS_ENABLED="0",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_day_of_a_cluster(day: dict[str, Any]) -> None:
    responses = day["responses"]
    assert responses["readyz"] == 200
    assert len(responses["generate"]) == 2
    assert responses["request_ids"] == ["mine"]
    assert responses["bad"] == [422, "invalid_value", True]
    assert responses["events"][0] == 200
    assert responses["events"][1] > 0
    assert day["after"], "the same seed gives the same image on every replica"
    assert day["replicas"] == [1, 2, 1, 2, 2, 1], (
        "idle, under load, a node killed, a new one, a process killed, idle"
    )
    assert day["cut"] == "event: error"
    assert day["drained"] == {"first": "event: step", "in_hand": True, "last": "event: done"}


@pytest.mark.slow
def test_a_scrape_shows_what_all_replicas_have_counted(day: dict[str, Any]) -> None:
    assert day["scrapes"] == sorted(day["scrapes"]), (
        "no counter decreases, whichever replica answers"
    )
    assert day["counted"] == {"callers": 200, "scrapes": 200}


@pytest.mark.slow
def test_a_node_that_is_killed_takes_only_its_requests_in_flight(day: dict[str, Any]) -> None:
    assert set(day["client"]) == {"done"}, "the client's retries hide it"
    lost = {outcome: count for outcome, count in day["bare"].items() if outcome != "200"}
    # One whose head was sent ends early: HTTP has no way to take the head back.
    assert all(outcome.startswith(("503 not_ready", "RemoteProtocolError")) for outcome in lost)
    assert sum(lost.values()) <= 2 * 4, (
        "a node and a process were killed, with four such requests in flight at most"
    )


# Without one


@pytest.mark.parametrize(
    ("device", "gpus", "told"),
    [("cpu", 1, "contradicts IGN_DEVICE=cpu"), ("cuda", 0, "IGN_DEVICE=cuda needs gpus=1")],
)
def test_a_device_that_ray_does_not_give_is_refused(
    device: str, gpus: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGN_DEVICE", device)
    with pytest.raises(StartupError, match=told):
        replica_settings(DeploymentOptions(gpus=gpus))


@pytest.mark.parametrize(("given", "used"), [(0.25, 1), (1, 1), (2, 2)])
def test_a_replica_serves_on_all_the_gpus_it_is_given(
    given: float, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGN_DEVICE", "auto")
    found = replica_settings(DeploymentOptions(gpus=given))
    assert (found.device, found.gpu_count) == ("cuda", used)


@asynccontextmanager
async def running(replica: Replica) -> AsyncIterator[None]:
    """The replica's app with its lifespan, which Ray drives in the same way."""
    lifespan = LifespanOn(
        Config(replica.__serve_build_asgi_app__(), lifespan="on", log_config=None)
    )
    await lifespan.startup()
    try:
        yield
    finally:
        await lifespan.shutdown()


def test_the_health_of_a_replica_is_that_of_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cluster.RaySharedTexts", lambda: None)  # needs Ray

    async def main() -> None:
        good = Replica(settings(write_models(tmp_path)))
        bad = Replica(settings(tmp_path / "nothing"))
        async with running(good), running(bad):
            await good.check_health()
            with pytest.raises(StartupError, match="no such directory"):
                await bad.check_health()
            assert good.services is not None
            good.services.in_flight.draining = True
            with pytest.raises(Draining, match="shutting down"):
                await good.check_health()

    asyncio.run(main())


def test_counts_of_replicas_that_have_ended_stay_and_their_gauges_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.cluster.FRESH_S", 0.0)
    board = ReplicaMetrics()
    for replica in "abc":
        board.put(
            replica,
            "# HELP n_total N.\n# TYPE n_total counter\nn_total 2.0\n# HELP g G.\n# TYPE g "
            "gauge\ng 1.0\n",
        )
    lines = add_up(board.texts()).decode().splitlines()
    assert "n_total 6.0" in lines
    assert "g 1.0" not in lines


def through_the_proxy(messages: list[Message]) -> list[Message]:
    """What a client receives when Ray's proxy sends these messages."""
    received: list[Message] = []

    async def ray_proxy(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    async def receive() -> Message:
        raise AssertionError("nobody asked for the body")

    async def send(message: Message) -> None:
        received.append(message)

    (layer,) = proxy()
    corrected: Any = layer.cls(ray_proxy, *layer.args, **layer.kwargs)
    asyncio.run(corrected({"type": "http", "headers": [(b"x-request-id", b"mine")]}, receive, send))
    return received


def test_silence_of_a_replica_is_a_503() -> None:
    start, body = through_the_proxy([])
    assert start["status"] == 503
    assert b"retry-after" in dict(start["headers"])
    problem = json.loads(body["body"])
    assert (problem["code"], problem["request_id"]) == ("not_ready", "mine")


def test_a_stream_that_a_replica_leaves_ends_with_an_error() -> None:
    start = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"text/event-stream")],
    }
    step = {"type": "http.response.body", "body": b"event: step\ndata: {}\n\n", "more_body": True}
    *before, last = through_the_proxy([start, step])
    assert before == [start, step]
    assert not last.get("more_body")
    name, _, data = last["body"].strip().partition(b"\ndata: ")
    assert (name, json.loads(data)["code"]) == (b"event: error", "not_ready")
    done = {"type": "http.response.body", "body": b""}
    assert through_the_proxy([start, step, done]) == [start, step, done]


def test_a_response_passes_with_one_request_id() -> None:
    twice = [
        (b"x-request-id", b"mine"),
        (b"content-type", b"image/png"),
        (b"X-Request-ID", b"mine"),
    ]
    start = {"type": "http.response.start", "status": 200, "headers": twice}
    body = {"type": "http.response.body", "body": b"image"}
    assert through_the_proxy([start, body]) == [{**start, "headers": twice[:2]}, body]
