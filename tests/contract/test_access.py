from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path

import pytest

from service.api.application import EXPOSED_HEADERS
from service.domain.accounts import Rate
from tests.contract.conftest import ORIGIN
from tests.contract.data import CALLS
from tests.contract.harness import (
    Service,
    bearer,
    problem,
    send,
    serving,
    settings,
    write_keys,
)
from tests.contract.oip import INFER

PAGE = {"Origin": ORIGIN}
OPEN = ("/metrics", "/docs", "/docs/start.js", "/openapi.json", "/", "/page/app.js")
HEALTH = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
PATHS = (
    *CALLS,
    INFER,
    "/models",
    "/models/grey",
    "/v2",
    "/v2/models/grey/ready",
    "/v2/models/stats",
    "/nope",
    "/docsx",
)


@pytest.mark.parametrize("path", PATHS)
def test_a_key_opens_the_service(guarded: Service, path: str) -> None:
    """A method that the path does not have is told to callers with a key only."""
    for scheme in ("Bearer", "bearer "):
        response = guarded.post(path, {}, headers={"Authorization": f"{scheme} alice-key"})
        assert response.status_code in (200, 400, 404, 405, 422)
    problem(guarded.post(path, {}, headers=bearer("ops")), 403, "forbidden")


@pytest.mark.parametrize("path", [*PATHS, "/v2/repository/index"])
@pytest.mark.parametrize(
    "values",
    [
        *([], ["Bearer wrong"], ["Bearer"], ["Basic YTpi"], ["alice-key"], ["Bearer ALICE-KEY"]),
        *(
            ["Bearer alice-key ops-key"],
            [f"Bearer {sha256(b'alice-key').hexdigest()}"],
            ["Bearer alice-key"] * 2,
        ),
    ],
)
def test_without_a_key_it_is_401(guarded: Service, path: str, values: list[str]) -> None:
    response = guarded.post(
        path, json={"n": 0}, headers=[("Authorization", value) for value in values]
    )
    assert "alice" not in problem(response, 401, "unauthorized").detail
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_a_key_without_the_scope_is_403(guarded: Service) -> None:
    assert len(guarded.post("/v2/repository/index", headers=bearer("alice")).json()) == 3
    for change in ("load", "unload"):
        path = f"/v2/repository/models/colour/{change}"
        problem(guarded.post(path), 401, "unauthorized")
        problem(guarded.post(path, headers=bearer("alice")), 403, "forbidden")
    assert (
        guarded.post("/v2/repository/models/colour/load", headers=bearer("ops")).status_code == 200
    )


@pytest.mark.parametrize("path", [*OPEN, *HEALTH])
def test_health_metrics_and_docs_stay_open(guarded: Service, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert guarded.get(path, headers=headers).status_code == 200


def test_what_is_configured_closed_needs_a_key_too(models: Path, keys: Path) -> None:
    key = bearer("alice")
    private = settings(models, api_keys_file=keys, private_endpoints=("metrics", "docs", "page"))
    for public in (False, True):
        with serving(private.replace(public=public)) as service:
            for path in OPEN:
                problem(service.get(path), 401, "unauthorized")
                assert service.get(path, headers=key).status_code == 200
            assert service.get("/healthz").status_code == 200
            assert service.post("/score", {}).status_code == (422 if public else 401)
            load = service.post("/v2/repository/models/colour/load", headers=bearer("ops"))
            assert load.status_code == (403 if public else 200)
    with serving(
        settings(models, api_keys_file=keys, private_endpoints=("health",)), ready=False
    ) as service:
        for path in HEALTH:
            problem(service.get(path), 401, "unauthorized")
        service.until(lambda: service.get("/readyz", headers=key).status_code == 200)
        assert service.get("/metrics").status_code == 200


def test_browsers_see_the_services_headers(service: Service) -> None:
    response = service.post("/generate", {"seed": 1}, headers=PAGE)
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    exposed = {
        name.strip() for name in response.headers["Access-Control-Expose-Headers"].split(",")
    }
    assert exposed == set(EXPOSED_HEADERS)
    assert exposed >= {
        "X-IGN-Steps",
        "X-IGN-Seed",
        "X-IGN-Model",
        "X-Request-ID",
        "X-Should-Retry",
        "Retry-After",
    }


def test_failures_are_readable_across_origins(service: Service, guarded: Service) -> None:
    for response in (
        service.post("/generate", {"n": 0}, headers=PAGE),
        service.get("/nope", headers=PAGE),
        guarded.post("/generate", {}, headers=PAGE),
    ):
        assert response.is_client_error
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN


def test_preflight(service: Service, guarded: Service) -> None:
    asked = "content-type, authorization, x-request-timeout, x-request-id"
    headers = PAGE | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": asked,
    }
    for each in (service, guarded):
        assert each.client.options("/generate", headers=headers).status_code == 200
    strange = headers | {"Origin": "https://other.example"}
    problem(service.client.options("/generate", headers=strange), 400, "malformed")


def test_other_origins_get_no_permission(service: Service) -> None:
    response = service.post("/generate", {}, headers={"Origin": "https://other.example"})
    assert "Access-Control-Allow-Origin" not in response.headers


def test_a_large_body_without_a_key_is_not_received(guarded: Service) -> None:
    response = send(guarded, "/project", bytes(8 << 20), "image/png")
    problem(response, 401, "unauthorized")
    assert response.headers["connection"] == "close"


# Rates

SLOW = Rate(2, 7200.0)


def test_beyond_the_rate_it_is_429_with_the_time_to_wait(models: Path) -> None:
    with serving(settings(models, rate_limit=SLOW)) as limited:
        assert limited.post("/generate", {}).status_code == 200
        problem(limited.post("/generate", {"n": 0}), 422, "invalid_value", "n")  # counts as well
        for _ in range(2):
            response = limited.post("/generate", {})
            problem(response, 429, "rate_limited")
            assert 3000 <= int(response.headers["Retry-After"]) <= 3600
        problem(limited.get("/models"), 429, "rate_limited")
        problem(limited.get("/nope"), 429, "rate_limited")
        assert limited.metric("ign_http_errors_total", code="rate_limited") == 4
        for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
            assert [limited.get(path).status_code for _ in range(4)] == [200] * 4


def test_a_key_has_its_own_quota_or_the_general_rate(models: Path, tmp_path: Path) -> None:
    file = write_keys(tmp_path, dict.fromkeys(("alice", "bob", "carol"), "infer"), alice="1/m")

    def passed(service: Service, key: str) -> int:
        statuses = [service.get("/models", headers=bearer(key)).status_code for _ in range(5)]
        assert set(statuses[statuses.index(429) :] if 429 in statuses else []) <= {429}
        return statuses.count(200)

    with serving(settings(models, api_keys_file=file, rate_limit=SLOW)) as service:
        assert [passed(service, name) for name in ("alice", "bob", "carol")] == [1, 2, 2]
        problem(service.get("/models"), 401, "unauthorized")  # nobody's, so nobody's quota
    with serving(settings(models, api_keys_file=file)) as service:
        assert [passed(service, name) for name in ("alice", "bob")] == [1, 5]


def test_processes_count_together(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.app.metrics_file", lambda: tmp_path / "0.prom")
    one_of_two = settings(models, rate_limit=Rate(3, 3600.0), workers=2)
    with serving(one_of_two) as first, serving(one_of_two) as second:
        statuses = [
            service.get("/models").status_code for _ in range(3) for service in (first, second)
        ]
    assert statuses == [200, 200, 200, 429, 429, 429]


@pytest.mark.parametrize("trusted", [False, True])
def test_callers_behind_a_proxy_count_only_where_it_is_trusted(models: Path, trusted: bool) -> None:
    proxies = (ip_network("127.0.0.0/8"),) if trusted else ()
    with serving(settings(models, rate_limit=Rate(1, 3600.0), trusted_proxies=proxies)) as service:
        statuses = [
            service.get(
                "/models", headers={"X-Forwarded-For": f"203.0.113.9, 198.51.100.{hop}"}
            ).status_code
            for hop in (1, 2, 1)
        ]
    assert statuses == ([200, 200, 429] if trusted else [200, 429, 429])
