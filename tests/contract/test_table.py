"""Every test that PROMISES.md names exists, and no endpoint that runs f is left out of a list."""

import re
from pathlib import Path

import pytest

from ign_client import Client
from service.app import ENDPOINTS
from tests.contract.data import CALLS

ROOT = Path(__file__).parents[2]
PROMISES = (Path(__file__).parent / "PROMISES.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", PROMISES)


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_the_named_tests_exist(file: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    names = {name.rpartition("::")[2] for named_in, name in NAMED if named_in == file}
    assert not {
        name for name in names if not re.search(rf"^ *(async )?def {name}\(", source, re.MULTILINE)
    }


def test_every_row_names_a_test() -> None:
    rows = [
        line
        for line in PROMISES.splitlines()
        if line.startswith("| ") and line != "| promise | tests |"
    ]
    assert len(rows) > 250
    assert all("::" in row for row in rows)


def test_every_endpoint_that_runs_f_has_a_body_and_a_method() -> None:
    made = {each.path: each.name for each in ENDPOINTS if each.tag == "Images" and each.request}
    assert CALLS.keys() == made.keys(), "CALLS in tests/contract/data.py: a small body for each"
    assert vars(Client).keys() >= {*made.values()}, "sdk/ign_client/_client.py: a method for each"
    script = (ROOT / "sdk" / "js" / "index.js").read_text(encoding="utf-8")
    assert all(f'"{path}"' in script for path in made), "sdk/js/index.js: a method for each"
