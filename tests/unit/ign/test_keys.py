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


def keys(command: str, *arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(main, ("keys", *command.split(), *arguments), env=variables)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_keys_are_added_listed_and_revoked(file: Path) -> None:
    where = {"IGN_API_KEYS_FILE": str(file)}
    secret = keys("add alice --quota 600/m", **where).stdout.strip()
    (alice,) = load_keys(file)
    assert (alice.scopes, alice.quota) == (frozenset({"infer"}), Rate(600, 60.0))
    assert alice.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    assert keys("add ops --scope infer --scope admin", **where).exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o644  # containers run as other users
    listed = keys("list", **where).output
    assert listed.splitlines() == ["alice\tinfer\t600/m", "ops\tinfer,admin\t-"]
    for name in ("alice", "ops"):
        assert keys("revoke", name, **where).exit_code == 0
    assert json.loads(file.read_text()) == []
    assert keys("add carol", **where).exit_code == 0
    assert [key.name for key in load_keys(file)] == ["carol"]


def test_commands_at_the_same_time_lose_no_change(file: Path) -> None:
    names = [f"caller-{i}" for i in range(16)]
    for name in names[:8]:
        keys("add", name, "--file", str(file))
    together = threading.Barrier(16)

    def change(name: str) -> None:
        together.wait()
        (revoke if name in names[:8] else add).main(
            ["--file", str(file), name], standalone_mode=False
        )

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(change, names))
    assert {key.name for key in load_keys(file)} == set(names[8:])


def test_a_disk_that_is_full_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys("add alice --file", str(file))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    done = keys("add bob --file", str(file))
    assert (done.exit_code, done.output) == (1, f"ign keys: {file}: No space left on device\n")
    assert [entry.name for entry in file.parent.iterdir()] == ["keys.json"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("add alice", "alice"),
        ("add bob --quota many", "quota"),
        ("add bob --scope all", "scope"),
        ("add two/words", "two/words"),
        ("revoke bob", "bob"),
        ("list --file /nowhere/k", "/nowhere/k: No such file"),
        ("add bob --file /nowhere/k", "/nowhere/k: No such file"),
    ],
)
def test_what_cannot_be_done_changes_nothing(file: Path, command: str, says: str) -> None:
    where = {"IGN_API_KEYS_FILE": str(file)}
    keys("add alice", **where)
    before = file.read_bytes()
    done = keys(command, **where)
    assert done.exit_code in (1, 2)
    assert says in done.output
    assert file.read_bytes() == before


@pytest.mark.parametrize("command", ["list", "add bob", "revoke bob"])
def test_a_file_of_another_kind_is_left_alone(file: Path, command: str) -> None:
    for content in ("", "{}", '[{"name": "alice"}]', "[[]]"):
        file.write_text(content)
        done = keys(command, "--file", str(file))
        assert (done.exit_code, str(file) in done.output) == (2, True)
        assert file.read_text() == content
    os.truncate(file, 1 << 40)
    assert "larger than 16 MiB" in keys(command, "--file", str(file)).output
    file.unlink()
    os.mkfifo(file)
    assert "not a regular file" in keys(command, "--file", str(file)).output
