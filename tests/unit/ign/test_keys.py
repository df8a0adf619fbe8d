"""`ign keys`: what it writes is what the service reads."""

import hashlib
import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ign.__main__ import main
from ign.keys import add, revoke
from service.api.access import load_keys
from service.domain.accounts import Rate
from service.domain.errors import StartupError


def keys(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(main, ("keys", *arguments), env=variables)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_an_added_key_is_one_that_the_service_reads(file: Path) -> None:
    done = keys("add", "alice", "--file", str(file), "--quota", "600/m")
    assert done.exit_code == 0
    secret = done.stdout.strip()
    (alice,) = load_keys(file)
    assert (alice.name, alice.scopes, alice.quota) == ("alice", frozenset({"infer"}), Rate(600, 60.0))
    assert alice.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [entry.name for entry in file.parent.iterdir()] == ["keys.json"]


def test_keys_are_added_listed_and_revoked(file: Path) -> None:
    where = {"IGN_API_KEYS_FILE": str(file)}
    assert keys("add", "alice", **where).exit_code == 0
    file.chmod(0o644)
    assert keys("add", "ops", "--scope", "infer", "--scope", "admin", "--quota", "20/s", **where).exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o644  # containers run as other users
    assert keys("list", **where).output.splitlines() == ["alice\tinfer\t-", "ops\tinfer,admin\t20/s"]
    assert keys("revoke", "alice", **where).exit_code == 0
    assert [key.name for key in load_keys(file)] == ["ops"]
    assert keys("revoke", "ops", **where).exit_code == 0
    assert json.loads(file.read_text()) == []
    assert keys("add", "carol", **where).exit_code == 0
    assert [key.name for key in load_keys(file)] == ["carol"]


def test_commands_at_the_same_time_lose_no_change(file: Path) -> None:
    names = [f"caller-{i}" for i in range(16)]
    for name in names[:8]:
        keys("add", name, "--file", str(file))
    together = threading.Barrier(16)

    def change(name: str) -> None:
        together.wait()
        (revoke if name in names[:8] else add).main(["--file", str(file), name], standalone_mode=False)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(change, names))
    assert {key.name for key in load_keys(file)} == set(names[8:])


def test_a_disk_that_is_full_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys("add", "alice", "--file", str(file))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    done = keys("add", "bob", "--file", str(file))
    assert (done.exit_code, done.output) == (1, f"ign keys: {file}: No space left on device\n")
    assert [entry.name for entry in file.parent.iterdir()] == ["keys.json"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "alice"], "alice"),
        (["add", "two words"], "two words"),
        (["add", "bob", "--quota", "many"], "quota"),
        (["add", "bob", "--scope", "all"], "scope"),
        (["revoke", "bob"], "bob"),
    ],
)
def test_what_cannot_be_done_changes_nothing(file: Path, arguments: list[str], says: str) -> None:
    keys("add", "alice", "--file", str(file))
    before = file.read_bytes()
    done = keys(*arguments, "--file", str(file))
    assert done.exit_code != 0
    assert says in done.output
    assert "Traceback" not in done.output
    assert file.read_bytes() == before


@pytest.mark.parametrize("arguments", [["list"], ["add", "bob"], ["revoke", "bob"]])
def test_a_file_of_another_kind_is_left_alone_and_without_one_it_says_how_to_name_one(
    file: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in ("", "{}", '[{"name": "alice"}]', "[[]]"):
        file.write_text(content)
        done = keys(*arguments, "--file", str(file))
        assert done.exit_code == 2
        assert str(file) in done.output
        assert file.read_text() == content
    monkeypatch.delenv("IGN_API_KEYS_FILE", raising=False)
    done = keys(*arguments)
    assert done.exit_code == 2
    assert "IGN_API_KEYS_FILE" in done.output


def test_a_file_that_cannot_be_read_or_written() -> None:
    done = keys("list", IGN_API_KEYS_FILE="/nowhere/keys.json")
    assert done.exit_code == 2
    assert "/nowhere/keys.json: No such file" in done.output
    assert keys("add", "bob", "--file", "/nowhere/keys.json").exit_code == 1


def test_a_pipe_or_a_giant_file_is_not_read(file: Path) -> None:
    os.mkfifo(file)
    for command in (["list"], ["add", "bob"], ["revoke", "bob"]):
        assert "not a regular file" in keys(*command, "--file", str(file)).output
    with pytest.raises(StartupError, match="not a regular file"):
        load_keys(file)
    file.unlink()
    with file.open("wb") as giant:
        giant.truncate(1 << 40)
    with pytest.raises(StartupError, match="larger than 16 MiB"):
        load_keys(file)
