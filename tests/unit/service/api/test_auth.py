import asyncio
import hashlib
import json
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.access import ApiKey, address_key, load_keys, peer_key
from service.domain.errors import StartupError
from service.domain.rate_limit import Rate
from tests.helpers.application import application


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


ENTRIES: list[dict[str, Any]] = [
    {"name": "alice", "sha256": digest("alice-key"), "scopes": ["infer"]},
    {"name": "ops", "sha256": digest("ops-key").upper(), "scopes": ["admin", "infer"], "quota": None},
    {"name": "loader", "sha256": digest("loader-key"), "scopes": ["admin"], "quota": "6/m"},
]
LOAD = "/v2/repository/models/mnist/load"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[ApiKey, ...]:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(ENTRIES))
    return load_keys(path)


async def _echo(request: Request) -> Response:
    return JSONResponse({"caller": getattr(request.state, "caller", None)})


def call(keys: Sequence[ApiKey], path: str, *authorization: str, method: str = "GET", **options: Any) -> httpx.Response:
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    api.add_api_route("/{path:path}", _echo, methods=["GET", "POST"])
    app = application(api, keys=keys, api_keys_file=Path("keys.json"), **options)

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, headers=[("Authorization", value) for value in authorization])

    return asyncio.run(main())


def test_keys_file(keys: tuple[ApiKey, ...]) -> None:
    assert [key.name for key in keys] == ["alice", "ops", "loader"]
    assert keys[1].digest.hex() == digest("ops-key")
    assert keys[1].scopes == {"admin", "infer"}
    assert [key.quota for key in keys] == [None, None, Rate(6, 60.0)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "JSON"),
        ("{}", "array"),
        ("[]", "no key"),
        (json.dumps([ENTRIES[0] | {"sha256": "ab"}]), "0.sha256"),
        (json.dumps([ENTRIES[0] | {"name": "a b"}]), "0.name"),
        (json.dumps([ENTRIES[0] | {"scopes": []}]), "0.scopes"),
        (json.dumps([ENTRIES[0], ENTRIES[1] | {"scopes": ["root"]}]), "1.scopes"),
        (json.dumps([ENTRIES[0] | {"key": "alice-key"}]), "0.key"),
        (json.dumps([ENTRIES[0] | {"quota": 5}]), "0.quota: expected requests per second or minute such as 20/s"),
        (json.dumps([ENTRIES[0] | {"quota": "5/h"}]), "0.quota: expected requests per second or minute such as 20/s"),
        (json.dumps([ENTRIES[0], ENTRIES[1] | {"name": "alice"}]), "name is given twice"),
        (json.dumps([ENTRIES[0], ENTRIES[0] | {"name": "bob"}]), "digest is given twice"),
    ],
)
def test_bad_keys_file_refuses_to_start_in_one_line(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(StartupError) as caught:
        load_keys(path)
    assert says in caught.value.detail
    assert str(path) in caught.value.detail
    assert "\n" not in caught.value.detail
    assert "alice-key" not in caught.value.detail  # somebody may have put the key itself into the file


def test_missing_keys_file_refuses_to_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="No such file"):
        load_keys(tmp_path / "none.json")
    with pytest.raises(StartupError, match="directory"):
        load_keys(tmp_path)


@pytest.mark.parametrize("header", ["Bearer alice-key", "bearer  alice-key", "BEARER alice-key "])
def test_a_valid_key_passes_and_names_the_caller(keys: tuple[ApiKey, ...], header: str) -> None:
    response = call(keys, "/generate", header)
    assert response.status_code == 200
    assert response.json() == {"caller": "alice"}


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("alice-key",),
        ("Basic alice-key",),
        ("Bearer",),
        ("Bearer ",),
        ("Bearer alice-kez",),
        ("Bearer alice-key ops-key",),
        (f"Bearer {digest('alice-key')}",),
        ("Bearer alice-key", "Bearer ops-key"),
    ],
)
def test_a_missing_or_wrong_key_is_401(keys: tuple[ApiKey, ...], headers: tuple[str, ...]) -> None:
    response = call(keys, "/generate", *headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "unauthorized"
    assert "alice" not in response.text


def test_every_key_is_compared(keys: tuple[ApiKey, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return a == b

    monkeypatch.setattr("service.api.access.hmac.compare_digest", compare)
    assert call(keys, "/generate", "Bearer alice-key").status_code == 200
    assert compared == [key.digest for key in keys]


@pytest.mark.parametrize("path", ["/generate", "/models", "/not-a-route", "/docsx", "/v2/repository/index", "/v2"])
def test_paths_are_closed_by_default(keys: tuple[ApiKey, ...], path: str) -> None:
    assert call(keys, path).status_code == 401
    assert call(keys, path, "Bearer ops-key").status_code == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/docs", "/docs/swagger-ui.css"])
def test_open_paths_need_no_key_and_heed_none(keys: tuple[ApiKey, ...], path: str) -> None:
    assert call(keys, path).status_code == 200
    assert call(keys, path, "Bearer wrong").status_code == 200


def test_open_paths_can_be_closed(keys: tuple[ApiKey, ...]) -> None:
    assert call(keys, "/metrics", private_endpoints=("metrics",)).status_code == 401
    assert call(keys, "/healthz", private_endpoints=("metrics",)).status_code == 200


def test_administration_needs_its_scope(keys: tuple[ApiKey, ...]) -> None:
    refused = call(keys, LOAD, "Bearer alice-key", method="POST")
    assert refused.status_code == 403
    assert refused.json()["code"] == "forbidden"
    assert "admin" in refused.json()["detail"]
    assert call(keys, LOAD, method="POST").status_code == 401
    assert call(keys, LOAD, "Bearer loader-key", method="POST").status_code == 200
    assert call(keys, "/generate", "Bearer loader-key", method="POST").status_code == 403


def test_an_empty_list_of_keys_lets_nobody_in() -> None:
    assert call([], "/generate").status_code == 401


PROXIES = [ip_network("10.0.0.0/8"), ip_network("2001:db8:ff::/48")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "key"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.9"], "192.0.2.1"),  # not a proxy of ours: anybody may write this header
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.9"], "198.51.100.9"),
        ("10.0.0.1", ["203.0.113.5, 198.51.100.9"], "198.51.100.9"),
        ("10.0.0.1", ["203.0.113.5", "198.51.100.9, 10.2.2.2"], "198.51.100.9"),
        ("10.0.0.1", ["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        ("10.0.0.1", ["198.51.100.9:4711"], "198.51.100.9"),
        ("10.0.0.1", ["198.51.100.9, unknown"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("2001:db8:ff::1", ["[2001:db8:1:2:3:4:5:6]:443"], "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64"),
        ("fe80::1%eth0", [], "fe80::/64"),
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        ("::ffff:10.0.0.1", ["198.51.100.9"], "198.51.100.9"),
        (None, ["198.51.100.9"], "local"),
        ("", [], "local"),
        ("testclient", [], "testclient"),
    ],
)
def test_caller_is_the_rightmost_untrusted_hop(peer: str | None, forwarded: list[str], key: str) -> None:
    assert peer_key(peer, forwarded, PROXIES) == key


def test_without_trusted_proxies_the_peer_counts() -> None:
    assert address_key("10.0.0.1") == "10.0.0.1"
