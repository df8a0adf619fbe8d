"""Requests of every kind, those that fail among them, so that there is something to be seen of each."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import httpx

SETTINGS = {"IGN_QUEUE_ROWS": "64", "IGN_MAX_INFLIGHT_REQUESTS": "8", "IGN_CPU_INSTANCES": "1"}
"""Limits of the service that some of this passes."""

_ENDLESS: Mapping[str, Any] = {"steps": 300_000}
TRACE = "0af7651916cd43dd8448eb211c80319c"
"""The trace that some requests belong to."""
_EVENTS = {"Accept": "text/event-stream"}


def traffic(url: str) -> None:
    """One round; every answer is held to the status it should have."""
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        _answered(client)
        _refused(client)
        _crowded(client)


def _answered(client: httpx.Client) -> None:
    traced = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    _post(client, 200, "/generate", json={"n": 4, "seed": 7, "score": True}, headers=traced)
    picture = _post(client, 200, "/generate", json={"seed": 7}, headers={"Accept": "image/png"}).content
    upload = {"content": picture, "headers": {"Content-Type": "image/png"}}
    _post(client, 200, "/project?steps=20&tolerance=1.5&score=true", **upload)
    _post(client, 200, "/score", **upload)
    _post(client, 200, "/latent-interpolate", json={"points": [{"seed": 1}, {"seed": 2}]})
    _post(client, 200, "/latent-arithmetic", json={"terms": [{"seed": 1}, {"seed": 2, "weight": -1}]})
    tensor = {"name": "x", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784}
    _post(client, 200, "/v2/models/mnist/infer", json={"inputs": [tensor]})
    assert client.get("/readyz").status_code == 200


def _refused(client: httpx.Client) -> None:
    _post(client, 422, "/generate", json={"n": 0})
    _post(client, 404, "/nothing")
    _post(client, 504, "/generate", json={**_ENDLESS}, headers={"X-Request-Timeout": "0.001"})


def _crowded(client: httpx.Client) -> None:
    """Fill the batch, half of the queue and then the service, be refused by both, and leave."""
    with ExitStack() as streams:

        def stream(rows: int) -> httpx.Response:
            request = client.build_request("POST", "/generate", json={"n": rows, **_ENDLESS}, headers=_EVENTS)
            response = client.send(request, stream=True)
            streams.callback(response.close)
            return response

        for rows in (64, 32):
            assert stream(rows).status_code == 200
        _post(client, 429, "/generate", json={"n": 64})
        assert any(stream(1).status_code == 503 for _ in range(8))


def _post(client: httpx.Client, status: int, path: str, **content: Any) -> httpx.Response:
    response = client.post(path, **content)
    assert response.status_code == status, f"{path}: {response.status_code} {response.text}"
    return response
