import hashlib
import json
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from service.api.access import ApiKey, load_keys, peer_key
from service.domain.accounts import Rate
from service.domain.errors import StartupError


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


ENTRIES: list[dict[str, Any]] = [
    {"name": "alice", "sha256": digest("alice-key"), "scopes": ["infer"]},
    {
        "name": "ops",
        "sha256": digest("ops-key").upper(),
        "scopes": ["admin", "infer"],
        "quota": None,
    },
    {"name": "loader", "sha256": digest("loader-key"), "scopes": ["admin"], "quota": "6/m"},
]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[ApiKey, ...]:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(ENTRIES))
    return load_keys(path)


def test_keys_file(keys: tuple[ApiKey, ...]) -> None:
    assert [key.name for key in keys] == ["alice", "ops", "loader"]
    assert keys[1].sha256 == digest("ops-key")
    assert keys[1].scopes == {"admin", "infer"}
    assert [key.quota for key in keys] == [None, None, Rate(6, 60.0)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "JSON"),
        ("{}", "list"),
        ("[]", "no key"),
        (json.dumps([ENTRIES[0] | {"sha256": "ab"}]), "sha256 of entry 1"),
        (json.dumps([ENTRIES[0] | {"scopes": []}]), "scopes of entry 1"),
        (json.dumps([ENTRIES[0], ENTRIES[1] | {"scopes": ["root"]}]), "scopes of entry 2"),
        (json.dumps([ENTRIES[0] | {"key": "alice-key"}]), "key of entry 1"),
        (json.dumps([ENTRIES[0] | {"quota": 5}]), "quota of entry 1: expected requests per second"),
        (json.dumps([ENTRIES[0] | {"quota": "5/h"}]), "or minute such as 20/s"),
        (json.dumps([ENTRIES[0], ENTRIES[1] | {"name": "alice"}]), "name is given twice"),
        (json.dumps([ENTRIES[0], ENTRIES[0] | {"name": "bob"}]), "sha256 is given twice"),
    ],
)
def test_bad_keys_file_refuses_to_start_in_one_line(
    tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(StartupError) as caught:
        load_keys(path)
    assert says in caught.value.detail
    assert str(path) in caught.value.detail
    assert "\n" not in caught.value.detail
    # somebody may have put the key itself into the file
    assert "alice-key" not in caught.value.detail


PROXIES = [ip_network("10.0.0.0/8"), ip_network("2001:db8:ff::/48")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "key"),
    [
        # not a proxy of ours: anybody may write this header
        ("192.0.2.1", ["198.51.100.9"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
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
        # looked at: the last 16
        ("10.0.0.1", ["198.51.100.9," + "10.0.0.1," * 1600 + "10.2.2.2"], "10.0.0.1"),
        (None, ["198.51.100.9"], "local"),
        ("testclient", [], "testclient"),
    ],
)
def test_caller_is_the_rightmost_untrusted_hop(
    peer: str | None, forwarded: list[str], key: str
) -> None:
    assert peer_key(peer, forwarded, PROXIES) == key
