import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.harness import Service, problem, serving, settings

ORIGIN = {"Origin": "https://app.example"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = [
        {"name": "alice", "sha256": hashlib.sha256(b"alice-key").hexdigest(), "scopes": ["infer"]},
        {"name": "ops", "sha256": hashlib.sha256(b"ops-key").hexdigest(), "scopes": ["admin"]},
    ]
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_text(json.dumps(keys))
    return file


@pytest.fixture(scope="module")
def guarded(models: Path, keys: Path) -> Iterator[Service]:
    with serving(settings(models, api_keys_file=keys, cors_origins=("https://app.example",))) as service:
        yield service


def test_a_key_opens_the_service(guarded: Service) -> None:
    for scheme in ("Bearer", "bearer"):
        assert guarded.post("/generate", {}, headers={"Authorization": f"{scheme} alice-key"}).status_code == 200
    assert guarded.get("/models", headers={"Authorization": "Bearer alice-key"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/generate",
        "/project",
        "/latent-interpolate",
        "/latent-arithmetic",
        "/score",
        "/models",
        "/models/grey",
        "/nope",
    ],
)
@pytest.mark.parametrize("value", [None, "Bearer wrong", "Bearer", "Basic YTpi", "alice-key", "Bearer ALICE-KEY"])
def test_without_a_key_it_is_401(guarded: Service, path: str, value: str | None) -> None:
    headers = {} if value is None else {"Authorization": value}
    response = guarded.post(path, {"n": 0}, headers=headers)
    problem(response, 401, "unauthorized")
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(("path", "key"), [("/generate", "ops-key"), ("/v2/repository/models/grey/load", "alice-key")])
def test_a_key_without_the_scope_is_403(guarded: Service, path: str, key: str) -> None:
    problem(guarded.post(path, {}, headers={"Authorization": f"Bearer {key}"}), 403, "forbidden")


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/docs", "/docs/start.js", "/openapi.json", "/", "/page/app.js"]
)
def test_health_metrics_and_docs_stay_open(guarded: Service, path: str) -> None:
    assert guarded.get(path).status_code == 200


def test_what_is_configured_closed_needs_a_key_too(models: Path, keys: Path) -> None:
    key = {"Authorization": "Bearer alice-key"}
    with serving(settings(models, api_keys_file=keys, private_endpoints=("metrics", "docs", "page"))) as service:
        for path in ("/metrics", "/docs", "/docs/start.js", "/openapi.json", "/", "/page/app.js"):
            problem(service.get(path), 401, "unauthorized")
            assert service.get(path, headers=key).status_code == 200
        assert service.get("/healthz").status_code == 200
    with serving(settings(models, api_keys_file=keys, private_endpoints=("health",)), ready=False) as service:
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
            problem(service.get(path), 401, "unauthorized")
        service.until(lambda: service.get("/readyz", headers=key).status_code == 200)
        assert service.get("/metrics").status_code == 200


def test_browsers_see_the_services_headers(service: Service) -> None:
    response = service.post("/generate", {"seed": 1}, headers=ORIGIN)
    assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
    exposed = {name.strip() for name in response.headers["Access-Control-Expose-Headers"].split(",")}
    assert exposed == {
        "X-IGN-Steps",
        "X-IGN-Distance",
        "X-IGN-Drift",
        "X-IGN-Seed",
        "X-IGN-Model",
        "X-Request-ID",
        "Server-Timing",
        "Retry-After",
        "traceparent",
    }


def test_failures_are_readable_across_origins(service: Service, guarded: Service) -> None:
    for response in (
        service.post("/generate", {"n": 0}, headers=ORIGIN),
        service.get("/nope", headers=ORIGIN),
        guarded.post("/generate", {}, headers=ORIGIN),
    ):
        assert response.is_client_error
        assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"


def test_preflight(service: Service, guarded: Service) -> None:
    asked = "content-type, authorization, x-request-timeout, x-request-id"
    headers = ORIGIN | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
    for each in (service, guarded):
        assert each.client.options("/generate", headers=headers).status_code == 200
    strange = headers | {"Origin": "https://other.example"}
    problem(service.client.options("/generate", headers=strange), 400, "malformed")


def test_other_origins_get_no_permission(service: Service) -> None:
    response = service.post("/generate", {}, headers={"Origin": "https://other.example"})
    assert "Access-Control-Allow-Origin" not in response.headers
