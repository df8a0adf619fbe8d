"""docs/http-api.md says which test holds which line of the contract; those tests exist."""

import ast
import json
import re
from functools import cache
from pathlib import Path

from tests.helpers.openapi import FILE

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8").partition("\n## What holds this contract\n")[2]
LINES = [
    line for line in SECTION.splitlines() if line.startswith("|") and line not in ("| promise | held by |", "|---|---|")
]
NAMED = re.compile(r"\[(tests/[\w/]+\.py)::([\w:]+)\]\(\.\./(tests/[\w/]+\.py)\)")


def row(line: str) -> tuple[str, str]:
    """The promise, and what holds it."""
    promise, held = re.split(r"(?<!\\)\|", line)[1:3]
    return promise.strip(), held.strip()


ROWS = [row(line) for line in LINES]


@cache
def names_in(file: Path) -> frozenset[str]:
    """Names of its tests, those of classes as `Class::test`."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            found |= {f"{node.name}::{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


def test_every_line_is_a_row() -> None:
    assert len(ROWS) > 250
    assert all(promise and held for promise, held in ROWS)
    assert len(re.findall(r"^\| promise \| held by \|\n\|---\|---\|\n", SECTION, re.MULTILINE)) == SECTION.count(
        "\n### "
    )


def test_what_holds_a_promise_exists() -> None:
    for promise, held in ROWS:
        names = NAMED.findall(held)
        assert names, promise
        assert ", ".join(f"[{file}::{name}](../{target})" for file, name, target in names) == held, promise
        for file, name, target in names:
            assert file == target, promise
            assert name in names_in(ROOT / file), f"{promise}: {file} has no {name}"


def test_every_path_is_held() -> None:
    promises = "\n".join(promise for promise, _ in ROWS) + "".join(re.findall(r"^### .*$", SECTION, re.MULTILINE))
    for path in json.loads(FILE.read_text(encoding="utf-8"))["paths"]:
        assert re.search(rf"[` ]{re.escape(path)}`", promises), path


def test_it_would_be_noticed() -> None:
    assert "test_it_would_be_noticed" in names_in(Path(__file__))
    assert "test_that_is_not_there" not in names_in(Path(__file__))
    assert "TestSeveralProcesses::test_a_refusal_to_start_is_one_line" in names_in(ROOT / "tests/e2e/test_process.py")
    assert row(r"| mean \|x\| | nothing |") == (r"mean \|x\|", "nothing")
