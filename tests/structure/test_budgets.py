"""The budgets of `make budgets`, and how it counts."""

import ast

import pytest

from tests.structure import budgets


def test_sizes_and_rules_are_within_their_budgets() -> None:
    assert not [str(budget) for budget in budgets.static_budgets() if not budget.holds]


@pytest.mark.slow
def test_a_request_enters_few_files_whatever_headers_it_has() -> None:
    measured = list(budgets.request_budgets())
    assert len(measured) == 2 * 8  # files and calls: plain, and seven sets of headers
    assert all(budget.value > 0 for budget in measured)
    assert not [str(budget) for budget in measured if not budget.holds]


def test_what_is_counted() -> None:
    assert budgets.lines_of("tests") > budgets.lines_of("tests/structure") > 0
    assert budgets.lines_of(".") > budgets.lines_of("service", "tests")
    assert {"app.py", "domain"} <= budgets.entries("service")
    assert budgets.words() > 0


SOURCE = """
def log(x):
    log(x - 1)

def count(self):
    log(1)
    self._rates.count(log(2))
    other.count()
    dialog(3)
"""


@pytest.mark.parametrize(("name", "lines"), [("log", [6, 7]), ("rates.count", [7]), ("nothing", [])])
def test_a_call_is_found_by_the_end_of_its_name(name: str, lines: list[int]) -> None:
    source = SOURCE if name != "rates.count" else SOURCE.replace("def count", "def pay")
    assert sorted(budgets.calls(ast.parse(source), name)) == lines


def test_a_budget_holds_or_not() -> None:
    for value, least, holds in ((1, 0, True), (0, 0, True), (2, 0, False), (0, 1, False), (1, 1, True)):
        assert budgets.Budget("x", value, 1, least).holds is holds
