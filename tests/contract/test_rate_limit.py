from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest

from service.domain.accounts import Rate
from tests.contract.harness import (
    PATIENCE_S,
    Service,
    bearer,
    problem,
    serving,
    settings,
    write_keys,
)

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
        with httpx.Client(base_url=service.url, headers=bearer(key), timeout=PATIENCE_S) as client:
            statuses = [client.get("/models").status_code for _ in range(5)]
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
