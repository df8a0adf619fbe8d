"""Every test that PROMISES.md names exists."""

import re
from pathlib import Path

import pytest

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
